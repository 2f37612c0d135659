"""What a training step takes on a device, known before it runs. Needs neither torch nor any other library.

The bytes that autograd keeps were counted, operation by operation, on XLM-R's layers (`tests/memory/test_memory.py`
counts them again); Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, count the
same way, for arithmetic that is all in 16 bits.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.memory.shape import Shape, Texts

LORA_RANK = 64
"""FlagEmbedding's default."""

_FLOAT = 4
_INDEX = 8
_WORKSPACE = 2**25
"""cuBLAS's, allocated through PyTorch (32 MiB on Hopper, less on older cards)."""
CONTEXT = 7e8
"""CUDA's context and kernels and what NCCL holds beside PyTorch's allocator: 0.5 to 0.8 GB, by the card and release."""
_CONTEXT_OF_NCCL = 5e8
_FRAGMENTS = 1.04
"""Allocator's segments over the bytes in use, where segments can grow."""
_SIMILARITIES = 2**26
"""`heads._SCORES_AT_ONCE`: token-to-token similarities at once."""
_SCORED_TOKENS = 16384
"""`EncodingSettings.batch_tokens` on a GPU."""
_SCORED_SIMILARITIES = 2**25
"""`ranking._SIMILARITIES_AT_ONCE`."""


@dataclass(frozen=True, kw_only=True)
class _Widths:
    """Bytes of a token in a layer, over the hidden size; where two are given, the second over the intermediate one."""

    kept: tuple[int, int]
    """What autograd keeps: products' inputs (in 16 bits three copies of the layer's own), the sums before each
    LayerNorm in float32, and two dropout masks."""
    forward: tuple[int, int]
    """What a layer holds at once where nothing is kept."""
    number: int
    """Of one value."""
    similarity: int
    """Of one similarity of two tokens: in the backward pass there is its gradient, too."""
    vector: int
    """Of a number of a padded token vector: as it is joined and compared, and its gradients."""


_MIXED = _Widths(kept=(26, 4), forward=(12, 4), number=2, similarity=4, vector=8)
_FULL = _Widths(kept=(34, 8), forward=(20, 8), number=4, similarity=8, vector=13)
_WORKING = (4, 4)
"""Bytes of a token in the layer that is at work, as in `_Widths`: gradients, or what the forward pass will drop."""
_INPUT = 4
"""A checkpointed layer keeps its input, LayerNorm's output, which is float32 also in 16 bits."""
_EMBEDDED = 5
"""The embeddings' sum and dropout mask."""
_LAST = 12
"""The last hidden states, copies of them for the heads, and token vectors before normalisation."""


_ADAPTED = ((5, 1), (17, 1))
"""Bytes that adapters keep of a token in a layer, as in `_Widths`, in 16 bits and in float32: each of the six has a
dropout mask, and in float32 a copy of its input, which query, key and value share otherwise."""
_ADAPTING = (1, 1)
"""Numbers that they add to the layer that is at work: an input's gradient comes from the layer and from its adapter."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device, by what they are for."""

    weights: float
    moments: float
    """The optimizer's; of DeepSpeed also its weights and gradients in float32."""
    gradients: float
    held_gradients: float
    """The part of the gradients, and of DistributedDataParallel's buckets, that is there from step to step."""
    copies: float
    """Autocast's weights in 16 bits."""
    kept: float
    """Activations from the forward pass to the backward pass."""
    heads: float
    """Token vectors, what is computed from them and its gradients, when the backward pass begins."""
    layers: float
    """Of one layer, or one sub-batch, in the backward pass: what is computed again, and gradients."""
    ending: float
    """When the backward pass is in the first layer or the embedding, and most gradients are there."""
    scoring: float
    """At a rung, beside weights and moments."""
    beside: float
    """What the process holds outside of PyTorch's allocator."""

    @property
    def training(self) -> float:
        """The most that PyTorch's allocator gives out at once in a step (`torch.cuda.max_memory_allocated`)."""
        activations = self.copies + self.kept + max(self.heads, self.layers)
        return self._states + max(self.held_gradients + activations, self.ending)

    @property
    def allocated(self) -> float:
        """The same of a trial, which is scored at its rungs."""
        return max(self.training, self._states + self.scoring)

    @property
    def _states(self) -> float:
        return self.weights + self.moments + _WORKSPACE

    @property
    def on_device(self) -> float:
        """The most that the device has to have."""
        return self.allocated * _FRAGMENTS + self.beside


def memory(
    shape: Shape,
    arguments: Mapping[str, Any],
    *,
    texts: Texts | None = None,
    sub_batch_size: int | None = None,
    checkpointing: bool | None = None,
    reachable: int | None = None,
    workers: int = 1,
) -> Memory:
    """Returns what training takes on each worker's GPU, rungs included.

    Args:
        shape: of the model.
        arguments: of a trial, by FlagEmbedding's and transformers' names.
        texts: of the longest batch. None: every text as long as the arguments allow.
        sub_batch_size: texts whose activations are held at once. None: all of them.
        checkpointing: whether layers' activations are computed again. None: both are as the arguments say; in
            sub-batches layers are not, nor are those of a frozen encoder.
        reachable: distinct tokens of the training data, where only their embeddings are trained
            (`embedding.Vocabulary`). None: the whole embedding is trained.
        workers: that train together.
    """
    texts = texts or Texts.longest(arguments)
    if checkpointing is None:
        sub_batch_size = sub_batch_size or positive(arguments.get("sub_batch_size"))
        keeps = not (sub_batch_size or arguments.get("fix_encoder"))
        checkpointing = bool(arguments.get("gradient_checkpointing")) and keeps
    left_out = 0 if reachable is None else max(0, shape.vocab_size - reachable) * shape.hidden_size
    states = _states(shape, arguments, shape.parameters - left_out, workers)
    work = _work(shape, arguments, texts, sub_batch_size, checkpointing)
    if sub_batch_size:  # the first one leaves gradients of all weights
        work["layers"] += max(0.0, states["gradients"] - states["held_gradients"])
    scoring = work.pop("scoring") + left_out * _FLOAT
    ending = states["gradients"] + work.pop("embedding")
    if not arguments.get("fix_encoder"):
        rest = (shape.parameters - shape.vocab_size * shape.hidden_size) / (shape.parameters - left_out)
        ending = max(ending, states["gradients"] * rest + work["first_layer"])
    work.pop("first_layer")
    beside = CONTEXT + _CONTEXT_OF_NCCL * (workers > 1)
    return Memory(**states, **work, ending=ending, scoring=scoring, beside=beside)


def _states(shape: Shape, arguments: Mapping[str, Any], parameters: int, workers: int) -> dict[str, float]:
    """Weights, moments and gradients of a step."""
    trained = _trained(shape, arguments, parameters)
    moments = trained * _moment_bytes(arguments.get("optim"))
    gradients, buckets = trained * _FLOAT, trained * _FLOAT * (workers > 1)
    accumulates = int(arguments.get("gradient_accumulation_steps") or 1) > 1
    mixed = _is_mixed(arguments)
    if not arguments.get("deepspeed"):
        held = buckets + gradients * accumulates
        weights = parameters * _FLOAT
        return {"weights": weights, "moments": moments, "gradients": gradients + buckets, "held_gradients": held}
    stage, offloaded = _zero(arguments["deepspeed"])
    parts = workers if stage >= 1 else 1
    own = 2 if mixed else _FLOAT
    masters = trained * 2 * _FLOAT * mixed  # weights and flat gradients in float32
    return {
        "weights": parameters * own,
        "moments": 0 if offloaded else (moments + masters) / parts,
        "gradients": trained * own / (parts if stage == 2 else 1),
        "held_gradients": trained * own * accumulates,
    }


def _trained(shape: Shape, arguments: Mapping[str, Any], parameters: int) -> int:
    """Returns how many of the parameters have gradients and moments."""
    heads = (shape.hidden_size + 1) * (shape.colbert_dim + 1)
    if arguments.get("fix_encoder"):
        return heads
    return heads + shape.adapters(_rank(arguments)) if arguments.get("use_lora") else parameters


def _rank(arguments: Mapping[str, Any]) -> int:
    return int(arguments.get("lora_rank") or LORA_RANK)


def _moment_bytes(optim: Any) -> int:
    """Returns bytes a parameter of an optimizer, by transformers' name for it: AdamW's two in float32 if not known."""
    name = str(getattr(optim, "value", optim))
    if "8bit" in name:
        return 2
    return {"sgd": 0, "adafactor": 1}.get(name, 2 * _FLOAT)


def _zero(deepspeed: Any) -> tuple[int, bool]:
    """Returns the stage of ZeRO, and whether the optimizer's state is kept off the device."""
    values = deepspeed if isinstance(deepspeed, Mapping) else json.loads(Path(deepspeed).read_text(encoding="utf-8"))
    zero = values.get("zero_optimization") or {}
    where = (zero.get("offload_optimizer") or {}).get("device", "none")
    return int(zero.get("stage", 0)), where != "none" or bool(zero.get("cpu_offload"))


def _work(
    shape: Shape,
    arguments: Mapping[str, Any],
    texts: Texts,
    sub_batch_size: int | None,
    checkpointing: bool,
) -> dict[str, float]:
    """Activations of a step, and what scoring takes instead."""
    mixed = _is_mixed(arguments)
    widths, size, at_once = _MIXED if mixed else _FULL, shape.hidden_size, texts.at_once(sub_batch_size)
    layer, inputs = (
        shape.wide(widths.kept) + _adapted(shape, arguments, widths),
        shape.num_hidden_layers * _INPUT * size,
    )
    unified, last = bool(arguments.get("unified_finetuning")), at_once * _LAST * size
    kept, again = (inputs, layer) if checkpointing else (shape.num_hidden_layers * layer, 0)
    working = shape.wide(_WORKING) + shape.wide(_ADAPTING) * widths.number * bool(arguments.get("use_lora"))
    stored, layers = at_once * (kept + _EMBEDDED * size), at_once * (again + working)
    one_at_a_time = checkpointing or bool(arguments.get("fix_encoder"))  # layers
    if arguments.get("fix_encoder"):  # nothing of it is kept, and nothing goes back through it
        stored, layers = 0, at_once * shape.wide(widths.forward)
    copies = shape.matrices * widths.number * mixed
    heads, held = _heads(shape, arguments, texts, widths)
    scored = _SCORED_TOKENS * (shape.wide(widths.forward) + 2 * _FLOAT * shape.colbert_dim * unified)
    return {
        "copies": copies / shape.num_hidden_layers if one_at_a_time else copies,
        "kept": held if sub_batch_size else stored,
        "heads": heads if sub_batch_size else heads + last,
        "layers": layers + stored + last if sub_batch_size else layers + last * (not one_at_a_time),
        "first_layer": at_once * (layer + working + (_INPUT + _EMBEDDED) * size),
        "embedding": at_once * shape.wide(_WORKING),
        "scoring": copies + scored + _SCORED_SIMILARITIES * _FLOAT * unified,
    }


def _adapted(shape: Shape, arguments: Mapping[str, Any], widths: _Widths) -> int:
    """Returns the bytes that a layer's adapters keep of a token, their inner values among them."""
    if not arguments.get("use_lora"):
        return 0
    dropped = shape.wide(_ADAPTED[widths is _FULL]) if arguments.get("lora_dropout") != 0 else 0
    return dropped + 6 * _rank(arguments) * widths.number


def _heads(shape: Shape, arguments: Mapping[str, Any], texts: Texts, widths: _Widths) -> tuple[float, float]:
    """Returns what the token vectors take when the backward pass begins, and what of it stays while it lasts.

    With `negatives_cross_device` FlagEmbedding gathers dense vectors alone.
    """
    if not arguments.get("unified_finetuning"):
        return 0.0, 0.0
    places = texts.queries * texts.query_length + texts.passages * texts.passage_length
    vectors = places * shape.colbert_dim
    best = texts.queries * texts.query_length * texts.passages
    loss = min(_SIMILARITIES, best * texts.passage_length) * widths.similarity + best * _INDEX
    return vectors * widths.vector + loss, vectors * widths.number


def _is_mixed(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments.get("fp16") or arguments.get("bf16"))


def positive(value: Any) -> int | None:
    """Returns a number of texts, or None for none, 0 and -1, by which upstream means all of them."""
    number = int(value or 0)
    return number if number > 0 else None
