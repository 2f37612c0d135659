"""Texts end to end in one row of tokens, so that an encoder spends nothing on padding.

Only attention looks across tokens, and it is computed text by text. On a GPU that would be a kernel a text; there
flash-attn does it in one (see `m3.attends_without_padding`).
"""

from collections.abc import Sequence
from typing import Any

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
"""Encoders that hand our arguments on to attention, and whose positions `_positions` knows; no classes made of them."""


def can_pack(encoder: PreTrainedModel) -> bool:
    """Returns whether the encoder's class is known to compute the same for `Packed` texts as for `Padded` ones."""
    return type(encoder) in _KNOWN and encoder.config._attn_implementation == "sdpa" and not encoder.config.is_decoder


def attend_text_by_text(encoder: PreTrainedModel) -> None:
    """Lets the encoder take `Packed` texts as well as `Padded` ones."""
    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    encoder.set_attn_implementation(_ATTENTION)


def attends_text_by_text(encoder: PreTrainedModel) -> bool:
    """Returns whether `attend_text_by_text` was called."""
    return bool(encoder.config._attn_implementation == _ATTENTION)


class Padded:
    """A group of `Layout.batch` as it is: a row for each text, padded to the longest."""

    def __init__(self, group: dict[str, Tensor]) -> None:
        self.mask = group["attention_mask"]
        self.places = group["places"]
        self._input_ids = group["input_ids"]

    def encode(self, encoder: PreTrainedModel) -> Tensor:
        """Returns hidden states, (texts, length, size)."""
        hidden: Tensor = encoder(self._input_ids, attention_mask=self.mask, return_dict=True).last_hidden_state
        return hidden

    def first(self, values: Tensor) -> Tensor:
        """Returns what is in the first place of each text."""
        return values[:, 0]

    def pad(self, values: Tensor) -> Tensor:
        """Returns values of tokens, zero where there is none, (texts, length, size)."""
        return values * self.mask[..., None]


class Packed:
    """The texts of a group end to end; see `can_pack` and `attend_text_by_text`."""

    def __init__(self, group: dict[str, Tensor]) -> None:
        self.mask = group["attention_mask"]
        self._padded_ids = group["input_ids"]
        self._tokens = self.mask.flatten().nonzero().squeeze(1)
        self._lengths = self.mask.sum(1)
        self._input_ids, self.places = (group[name].take(self._tokens)[None] for name in ("input_ids", "places"))

    def encode(self, encoder: PreTrainedModel) -> Tensor:
        """Returns hidden states, (tokens, size)."""
        positions = _positions(encoder, self._padded_ids).take(self._tokens)
        hidden: Tensor = encoder(
            self._input_ids, position_ids=positions[None], text_lengths=self._lengths.tolist(), return_dict=True
        ).last_hidden_state
        return hidden[0]

    def first(self, values: Tensor) -> Tensor:
        """Returns what is in the first place of each text."""
        return values[self._lengths.cumsum(0) - self._lengths]

    def pad(self, values: Tensor) -> Tensor:
        """Gives every text a row of its own: (tokens, size) to (texts, length, size), zero where there is no token."""
        empty = values.new_zeros(self.mask.numel(), values.shape[1])
        return empty.index_copy(0, self._tokens, values).view(*self.mask.shape, -1)


def _positions(encoder: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Returns the positions of padded texts' tokens, (texts, length).

    RoBERTa's begin after the padding's id, and pass over padding, also where a text itself holds that token.
    """
    if isinstance(encoder, BertModel):
        return torch.arange(input_ids.shape[1]).expand_as(input_ids)
    padding = encoder.config.pad_token_id
    counted = input_ids.ne(padding).long()
    positions: Tensor = counted.cumsum(1) * counted + padding
    return positions


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    text_lengths: Sequence[int] | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attends within each text; query, key and value are (1, heads, tokens, size)."""
    if text_lengths is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    lengths = list(text_lengths)
    # tokens first, so that the gradients come back in the layout of the projections
    parts = (torch.split(part.transpose(1, 2), lengths, dim=1) for part in (query, key, value))
    attended = [_attend(*text, dropout=dropout, scaling=scaling) for text in zip(*parts, strict=True)]
    return torch.cat(attended, dim=1), None


def _attend(query: Tensor, key: Tensor, value: Tensor, *, dropout: float, scaling: float | None) -> Tensor:
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling).transpose(1, 2)
