"""Float32 linear layers through oneDNN, on CPUs where that is faster than the BLAS that torch was built with.

torch's CPU builds multiply with MKL, which leaves half of the speed of a CPU that is not made by Intel unused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def fast_linear(*modules: nn.Module | None) -> Iterator[None]:
    """Lets oneDNN multiply for the linear layers of `modules` that are on a CPU where it is faster, gradients included.

    The layers change their class for the block, so that activation checkpointing, which calls them from the backward
    pass, computes the same again.
    """
    faster = is_faster()
    inside = [layer for module in modules if module is not None for layer in module.modules()]
    layers = [layer for layer in inside if faster and type(layer) is nn.Linear and not layer.weight.is_cuda]
    for layer in layers:
        layer.__class__ = _FastLinear
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear


@cache
def is_faster() -> bool:
    """Returns whether oneDNN multiplies faster here than MKL, which is at its best on Intel CPUs only."""
    cpu = Path("/proc/cpuinfo")
    made_by_intel = cpu.exists() and "GenuineIntel" in cpu.read_text()
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return both and not made_by_intel


class _FastLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu")
        is_empty = not x.numel()  # oneDNN refuses it
        if is_empty or autocast or x.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return super().forward(x)
        product: Tensor = _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product


class _Linear(torch.autograd.Function):
    """x W^T + b for x (..., in), W (out, in), b (out) or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if needs_x else None,
            _product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight.contiguous(), bias, "none", [], "")
    return product
