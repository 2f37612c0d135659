"""LoRA of the encoder (Hu et al. 2021, arXiv:2106.09685) through peft; the heads are trained whole.

The adapters are put into the encoder itself, which keeps its class, so that its texts can lie end to end.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as AdaptedLinear
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

_ADAPTER = "default"
_ALL_LINEAR = "all-linear"
"""peft's word for every linear layer."""
_UNUSED = "pooler"
"""A part of some encoders that nothing takes the output of: an adapter there would never have a gradient."""


@dataclass
class LoraArguments:
    """FlagEmbedding's arguments for LoRA of its decoder models, with their defaults, but off unless asked for."""

    use_lora: bool = field(
        default=False,
        metadata={"help": "Train low-rank adapters of the encoder's linear layers (LoRA) and the heads, nothing else."},
    )
    lora_rank: int = field(default=64, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(
        default=16, metadata={"help": "Adapters count lora_alpha / lora_rank times; twice the rank is usual."}
    )
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout rate of what goes into the adapters."})
    target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the encoder's linear layers that get adapters (default: all).", "nargs": "+"},
    )


class Adapters:
    """Trains an encoder by adapters, and makes it a plain one of merged weights while it is scored or saved.

    The adapters' first matrices are drawn from torch's generator.

    Args:
        encoder: gets adapters at once; everything else in it is frozen.
        arguments: rank, alpha, dropout and the layers.

    Raises:
        ValueError: a name among the layers is none of a linear layer's.
    """

    def __init__(self, encoder: PreTrainedModel, arguments: LoraArguments) -> None:
        targets = named_targets(arguments.target_modules)
        if unknown := unknown_targets(encoder, targets):
            raise ValueError(unknown)
        config = LoraConfig(
            r=arguments.lora_rank,
            lora_alpha=arguments.lora_alpha,  # type: ignore[arg-type]  # scales as any number does
            lora_dropout=arguments.lora_dropout,
            target_modules=targets or _ALL_LINEAR,
            exclude_modules=rf"{_UNUSED}\..*" if getattr(encoder, _UNUSED, None) else None,
        )
        inject_adapter_in_model(config, encoder, adapter_name=_ADAPTER)
        self._layers = list(_adapted(encoder))
        self._frozen = [_base(layer).weight.detach() for _, _, layer in self._layers]
        for _, _, layer in self._layers:
            layer.cast_input_dtype_enabled = False  # autocast does it

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Puts plain layers into the encoder for a block, with the weights that it and its adapters make together.

        The weights from before come back as they were, bit by bit: adding and subtracting would round them.
        """
        for parent, name, layer in self._layers:
            base = _base(layer)
            base.weight.data = _merged(layer)
            setattr(parent, name, base)
        try:
            yield
        finally:
            for (parent, name, layer), frozen in zip(self._layers, self._frozen, strict=True):
                weight = _base(layer).weight
                weight.data = frozen.to(weight.device, weight.dtype)
                setattr(parent, name, layer)


@torch.no_grad()
def _merged(layer: AdaptedLinear) -> Tensor:
    weight = _base(layer).weight
    merged: Tensor = weight + layer.get_delta_weight(_ADAPTER)
    return merged.to(weight.dtype)


def _base(layer: AdaptedLinear) -> nn.Linear:
    base = layer.base_layer
    assert isinstance(base, nn.Linear)
    return base


def _adapted(encoder: nn.Module) -> Iterator[tuple[nn.Module, str, AdaptedLinear]]:
    """Yields each layer that has an adapter, with the module that it is in and its name there."""
    for parent in list(encoder.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, AdaptedLinear):
                yield parent, name, layer


def named_targets(targets: Sequence[str] | None) -> list[str]:
    """Returns the names of layers that are asked for; empty for all of them."""
    return [name for name in targets or () if name != _ALL_LINEAR]


def unknown_targets(encoder: nn.Module, targets: Sequence[str]) -> str:
    """Returns what is wrong with the names of layers that are to have adapters; empty where nothing is."""
    layers = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(f"{_UNUSED}.")
    ]
    unknown = [name for name in targets if not any(f".{layer}".endswith(f".{name}") for layer in layers)]
    there = ", ".join(sorted({layer.rpartition(".")[2] for layer in layers}))
    return (
        f"--target_modules {' '.join(unknown)}: no linear layer of the model has that name; it has {there}; without "
        "the flag all of them get adapters"
        if unknown
        else ""
    )


def main(model: str, trusted: str, *targets: str) -> None:
    """Prints what is wrong with the names of layers of the model in a folder, whose weights are not read."""
    own_code = trusted == str(True)
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(model, trust_remote_code=own_code)
        encoder = AutoModel.from_config(config, trust_remote_code=own_code)  # type: ignore[no-untyped-call]
    print(unknown_targets(encoder, named_targets(targets)))


if __name__ == "__main__":
    main(*sys.argv[1:])
