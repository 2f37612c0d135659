"""The groups of a batch as an encoder takes them: padded, or end to end (see `trainables.varlen`)."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainables.varlen import within_texts


class Padded:
    """A group of `Layout.batch` of a row for each text."""

    def __init__(self, group: dict[str, Any]) -> None:
        self._mask = group["attention_mask"]
        self.places = group["places"]
        self._input_ids = group["input_ids"]

    def encode(self, encoder: PreTrainedModel) -> Tensor:
        """Returns hidden states, (texts x length, size)."""
        hidden: Tensor = encoder(self._input_ids, attention_mask=self._mask, return_dict=True).last_hidden_state
        return hidden.flatten(0, 1)

    def mean(self, hidden: Tensor) -> Tensor:
        """Returns the mean of each text's hidden states, (texts, size)."""
        mask: Tensor = self._mask.to(_wide(hidden))
        return (hidden.view(*mask.shape, -1) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class Packed:
    """A group of `Layout.batch` whose texts lie end to end; see `can_pack` and `attend_text_by_text`."""

    def __init__(self, group: dict[str, Any]) -> None:
        self.places = group["places"][None]
        self._group = group

    def encode(self, encoder: PreTrainedModel) -> Tensor:
        """Returns hidden states, (tokens, size)."""
        group = self._group
        hidden: Tensor = encoder(
            group["input_ids"][None],
            position_ids=group["positions"][None],
            **within_texts(encoder, group["cu_seqlens"], group["longest"], group["lengths"]),
            return_dict=True,
        ).last_hidden_state
        return hidden.squeeze(0)

    def mean(self, hidden: Tensor) -> Tensor:
        """Returns the mean of each text's hidden states, (texts, size)."""
        texts, longest = len(self._group["lengths"]), self._group["longest"]
        padded = hidden.new_zeros(texts * longest, hidden.shape[1], dtype=_wide(hidden))
        padded = padded.index_copy(0, self._group["grid"], hidden.to(_wide(hidden)))
        lengths: Tensor = self._group["cu_seqlens"].diff()
        return padded.view(texts, longest, -1).sum(1) / lengths[:, None]


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
