"""Stand-ins on the CPU for PyTorch's variable-length attention on CUDA: the same operators, with their gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, library
from torch.nn.functional import scaled_dot_product_attention

from trainables import varlen

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def _by_text(cu_seqlens: Tensor, longest: int, dropout: float, scale: float | None) -> Attend:
    """Attends over (tokens, heads, size), as the operators are documented to."""
    assert cu_seqlens.dtype == torch.int32
    assert cu_seqlens.is_contiguous()
    sizes = cu_seqlens.diff().tolist()
    assert max(sizes) <= longest

    def attend(*given: Tensor) -> Tensor:
        assert all(len(part) == int(cu_seqlens[-1]) and part.stride(-1) == 1 for part in given)
        texts = zip(*(part.split(sizes) for part in given), strict=True)
        return torch.cat([_attend(*text, dropout=dropout, scale=scale) for text in texts])

    return attend


def _attend(query: Tensor, key: Tensor, value: Tensor, *, dropout: float, scale: float | None) -> Tensor:
    query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
    return scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale)[0].transpose(0, 1)


def _gradients(cu_seqlens: Tensor, scale: float | None, grad: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
    """Returns the gradients of attention without dropout: below autograd, so they are written out."""
    sizes = cu_seqlens.diff().tolist()
    texts = zip(*(part.transpose(0, 1).split(sizes, 1) for part in (grad, *given)), strict=True)
    factor = given[0].shape[-1] ** -0.5 if scale is None else scale
    parts = [_gradients_of_one(factor, *text) for text in texts]
    return tuple(torch.cat(part, 1).transpose(0, 1).contiguous() for part in zip(*parts, strict=True))


def _gradients_of_one(scale: float, grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Of tensors (heads, tokens, size)."""
    shares = torch.softmax(query @ key.mT * scale, -1)
    of_shares = grad @ value.mT
    of_products = shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True)) * scale
    return of_products @ key, of_products.mT @ query, shares.mT @ grad


def _flash(
    q: Any, k: Any, v: Any, cu: Any, cu_k: Any, longest: int, _: int, dropout: float, *rest: Any, **more: Any
) -> Any:
    assert cu is cu_k or torch.equal(cu, cu_k)
    assert rest[:1] in ((), (False,))
    attended = _by_text(cu, longest, dropout, more.get("scale"))(q, k, v)
    nothing = torch.zeros(2, dtype=torch.uint64)
    return attended, q.new_empty(q.shape[1], len(q), dtype=torch.float32), nothing, nothing[0], q.new_empty(0)


def _flash_backward(grad: Any, q: Any, k: Any, v: Any, _: Any, __: Any, cu: Any, *rest: Any, **more: Any) -> Any:
    assert rest[3] == 0.0  # dropout
    return _gradients(cu, more.get("scale"), grad, q, k, v)


def _efficient(
    q: Any, k: Any, v: Any, bias: Any, cu: Any, _: Any, longest: int, __: int, dropout: float, mask: int = 0,
    keep: bool = False, *, scale: float | None = None, **___: Any,
) -> Any:  # fmt: skip
    assert bias is None
    assert mask == 0
    assert len(q) == 1
    attended = _by_text(cu, longest, dropout, scale)(q[0], k[0], v[0])[None]
    assert keep or not torch.is_grad_enabled()
    seed = torch.zeros((), dtype=torch.int64)
    return attended, q.new_empty(len(cu) - 1, q.shape[2], longest, dtype=torch.float32), seed, seed, longest, longest


def _efficient_backward(grad: Any, q: Any, k: Any, v: Any, _: Any, __: Any, cu: Any, *rest: Any, **more: Any) -> Any:
    assert rest[4] == 0.0  # dropout
    parts = _gradients(cu, more.get("scale"), grad[0], q[0], k[0], v[0])
    return *(part[None] for part in parts), torch.empty(0)


@contextmanager
def kernels_on_cpu(name: str = "efficient") -> Iterator[list[str]]:
    """Lets texts end to end on the CPU go through a CUDA kernel's operator, computed text by text.

    Yields:
        Name of the kernel for each time that one was chosen.
    """
    operators = library.Library("aten", "IMPL")
    for operator, stand_in in {
        "_flash_attention_forward": _flash,
        "_flash_attention_backward": _flash_backward,
        "_efficient_attention_forward": _efficient,
        "_efficient_attention_backward": _efficient_backward,
    }.items():
        operators.impl(operator, stand_in, "CPU")
    called: list[str] = []

    def kernel_of(*_: Any) -> varlen.Kernel:
        called.append(name)
        kernel: varlen.Kernel = getattr(varlen, name)
        return kernel

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(varlen, "kernel_of", kernel_of)
            yield called
    finally:
        operators._destroy()
