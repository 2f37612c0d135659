"""Base models in host memory, so that a trial copies where the first one in the process read files."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

_HEADS = ("colbert_linear", "sparse_linear")


@dataclass
class _Base:
    """A base model as it was read: never trained, only copied."""

    parts: dict[str, Any]
    has_heads: bool
    random: bool


class BaseModels:
    """Base models, tokenizers and tokenised held-out data, kept between the trials of a process.

    Args:
        scorers: tokenised held-out data, by what it depends on.
    """

    def __init__(self, scorers: dict[Any, Any] | None = None) -> None:
        self.scorers = {} if scorers is None else scorers
        self._models: dict[tuple[Any, ...], _Base] = {}
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}

    def tokenizer(self, arguments: Any) -> PreTrainedTokenizerBase:
        """Returns the tokenizer of FlagEmbedding's model arguments; `tokenizer_name` is ignored, as it is upstream."""
        known = {
            "cache_dir": arguments.cache_dir,
            "token": arguments.token,
            "use_fast": arguments.use_fast_tokenizer,
            "trust_remote_code": arguments.trust_remote_code,
        }
        key = repr((arguments.model_name_or_path, known))
        if key not in self._tokenizers:
            self._tokenizers[key] = AutoTokenizer.from_pretrained(arguments.model_name_or_path, **known)
        return self._tokenizers[key]

    def model(self, load: Callable[..., dict[str, Any]], arguments: Any) -> dict[str, Any]:
        """Returns encoder and heads as `load` does, and draws from torch's generator what it draws.

        A checkpoint that lacks encoder weights is read again each time, because filling them in draws too.

        Args:
            load: upstream's `EncoderOnlyEmbedderM3Runner.get_model`.
            arguments: upstream's model arguments.
        """
        key = (arguments.model_name_or_path, arguments.trust_remote_code, arguments.colbert_dim, arguments.cache_dir)
        base = self._models.get(key)
        if base is None or base.random:
            before = torch.get_rng_state()
            parts = _in_float32(load(*key))
            self._models[key] = _as_base(parts, before)
            return parts
        return _copy(base)


def _in_float32(parts: dict[str, Any]) -> dict[str, Any]:
    """Returns the parts with an encoder in float32, as FlagEmbedding's trainer had it with transformers 4.

    transformers 5 loads the precision that weights are stored in; Adam's steps are lost in 16 bits.
    """
    return {**parts, "model": parts["model"].float()}


def _as_base(parts: dict[str, Any], before: Tensor) -> _Base:
    """Keeps a copy, having found out by repeating them which draws the loading made since `before`."""
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    heads = _new_heads(parts)
    random = not torch.equal(torch.get_rng_state(), after)
    torch.set_rng_state(after)
    fresh = all(torch.equal(head.weight, parts[name].weight) for name, head in heads.items())
    return _Base({} if random else copy.deepcopy(parts), has_heads=not fresh, random=random)


def _new_heads(parts: Mapping[str, Any]) -> dict[str, nn.Linear]:
    return {name: nn.Linear(parts[name].in_features, parts[name].out_features) for name in _HEADS}


def _copy(base: _Base) -> dict[str, Any]:
    new = _new_heads(base.parts)
    heads = {name: copy.deepcopy(base.parts[name]) for name in _HEADS} if base.has_heads else new
    return {"model": copy.deepcopy(base.parts["model"]), **heads}
