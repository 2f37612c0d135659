"""Attention over texts that lie end to end in one row of tokens, so that an encoder spends nothing on padding.

Only attention looks across tokens. On a GPU one of PyTorch's own variable-length kernels computes it for all texts at
once; both take dropout and have gradients. Elsewhere, and in a precision without a kernel, it goes text by text.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertModel,
    PreTrainedModel,
    RobertaModel,
    XLMRobertaModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_ATTENTION = "text_by_text"
"""Name of our attention among transformers' implementations."""

_KNOWN = (BertModel, RobertaModel, XLMRobertaModel)
"""Encoders that hand our arguments on to attention, and whose positions `positions` knows; no classes made of them."""

_MOST_SIZE = 256
"""Largest head that the kernels take; its size is a multiple of 8."""

Kernel = Callable[..., Tensor]
"""Attends within texts: query, key and value (1, tokens, heads, size), `cu_seqlens`, `longest`, `dropout`, `scaling`;
returns what it attended to in query's shape."""


def can_pack(encoder: nn.Module) -> bool:
    """Returns whether the encoder's class is known to compute the same for texts end to end as for padded ones."""
    config: Any = encoder.config
    return type(encoder) in _KNOWN and config._attn_implementation == "sdpa" and not config.is_decoder


def attend_text_by_text(encoder: PreTrainedModel) -> None:
    """Lets the encoder take texts end to end as well as padded ones.

    For texts end to end it is called with what `within_texts` returns.
    """
    AttentionInterface.register(_ATTENTION, attend)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    encoder.set_attn_implementation(_ATTENTION)


def within_texts(
    encoder: Any, cu_seqlens: Tensor, longest: int, text_lengths: Sequence[int] | npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Returns what an encoder is called with, beside tokens and positions, for texts end to end: see `attend`."""
    device, config = cu_seqlens.device, encoder.config
    reduced = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if reduced else encoder.dtype
    kernel = kernel_of(device, dtype, config.hidden_size // config.num_attention_heads)
    # a compiled layer is compiled anew for every other list of lengths that it is shown
    how = {"text_lengths": text_lengths} if kernel is None else {"kernel": kernel}
    return {"cu_seqlens": cu_seqlens, "longest": longest, **how}


def attends_text_by_text(encoder: nn.Module) -> bool:
    """Returns whether `attend_text_by_text` was called."""
    return bool(getattr(getattr(encoder, "config", None), "_attn_implementation", None) == _ATTENTION)


def padding_position(encoder: nn.Module) -> int | None:
    """Returns the padding's id for an encoder whose positions begin after it, None for one that begins at 0."""
    config: Any = encoder.config
    return None if isinstance(encoder, BertModel) else config.pad_token_id


def positions(
    ids: npt.NDArray[Any], offsets: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], padding: int | None
) -> npt.NDArray[np.int64]:
    """Returns the positions of the tokens of texts end to end, as the encoder gives them to padded texts.

    RoBERTa's begin after the padding's id, and pass over padding, also where a text itself holds that token.

    Args:
        ids: of all tokens, (tokens,).
        offsets: number of tokens before each in its own text, (tokens,).
        starts: where each token's text starts, (tokens,).
        padding: see `padding_position`.
    """
    if padding is None:
        return offsets
    counted = ids != padding
    before = np.cumsum(counted) - counted
    return np.where(counted, before - before[starts] + 1, 0) + padding


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seqlens: Tensor | None = None,
    longest: int = 0,
    text_lengths: Sequence[int] | npt.NDArray[np.int64] | None = None,
    kernel: Kernel | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attends within each text, in the interface of transformers.

    Args:
        module: unused.
        query: (1, heads, tokens, size), as `key` and `value`.
        attention_mask: of padded texts.
        cu_seqlens: int32 on the tokens' device, (texts + 1,): where each text starts, and the end. None: the texts are
            padded, and PyTorch's attention takes them.
        longest: tokens of the longest text, or more.
        text_lengths: tokens of each text, on the host.
        kernel: what attends to texts end to end; None to go from text to text by `text_lengths`.
        dropout: probability.
        scaling: of the products; None for one over the root of `size`.

    Returns:
        (1, tokens, heads, size), and None.
    """
    if cu_seqlens is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    # tokens first, so that the gradients come back in the layout of the projections
    parts = [part.transpose(1, 2) for part in (query, key, value)]
    if kernel is not None:
        return kernel(*parts, cu_seqlens=cu_seqlens, longest=longest, dropout=dropout, scaling=scaling), None
    assert text_lengths is not None
    lengths = list(map(int, text_lengths))
    texts = zip(*(torch.split(part, lengths, dim=1) for part in parts), strict=True)
    return torch.cat([_attend_to_one(*text, dropout=dropout, scaling=scaling) for text in texts], dim=1), None


def _attend_to_one(query: Tensor, key: Tensor, value: Tensor, *, dropout: float, scaling: float | None) -> Tensor:
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling).transpose(1, 2)


def kernel_of(device: torch.device, dtype: torch.dtype, size: int) -> Kernel | None:
    """Returns the kernel for tokens of this device, precision and size of a head, or None where there is none."""
    if device.type != "cuda" or size % 8 or size > _MOST_SIZE:
        return None
    if dtype in (torch.float16, torch.bfloat16) and _is_modern(device.index):
        return flash
    return efficient if dtype in (torch.float32, torch.float16) else None


@cache
def _is_modern(device: int | None) -> bool:
    """Returns whether a card and the installed PyTorch have the flash kernel."""
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= (8, 0)


def flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens: Tensor,
    longest: int,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> Tensor:
    """Is a `Kernel` for 16 bits on compute capability 8 and newer."""
    query, key, value = (part.squeeze(0) for part in (query, key, value))  # gradients of [0] would be copied
    given = (query, key, value, cu_seqlens, cu_seqlens, longest, longest, dropout, False, False)
    attended: Tensor = torch.ops.aten._flash_attention_forward(*given, scale=scaling)[0]
    return attended[None]


def efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens: Tensor,
    longest: int,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> Tensor:
    """Is a `Kernel` for float32, and for 16 bits on older cards."""
    given = (query, key, value, None, cu_seqlens, cu_seqlens, longest, longest, dropout, 0, torch.is_grad_enabled())
    attended: Tensor = torch.ops.aten._efficient_attention_forward(*given, scale=scaling)[0]
    return attended
