"""Lays the texts of a training batch out for the encoder: end to end, or in groups of similar length.

Everything that depends on the batch's contents is computed here, on the host and from token ids, so that the training
step itself asks the device for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Ids = npt.NDArray[np.int32]
"""Token ids of one text, special tokens included, not padded."""

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How batches are laid out."""

    pad_token_id: int
    special_tokens: tuple[int, ...]
    """Tokens without a weight in the sparse score."""
    pad_to_multiple_of: int | None
    """The whole batch's padded length is a multiple of it, as upstream's is."""
    padding_side: str
    sub_batch_size: int | None
    """Most texts in a group; None or <= 0 for no limit."""
    group_cost: int
    """What one more group costs, in tokens that the encoder could go through instead."""
    packed: bool
    """The encoder takes a group's texts end to end (see `packing`), so that they need not be of similar length."""
    like_upstream: bool
    """One group of queries and one of passages, each in its order and padded to its longest: dropout draws the same."""

    def batch(self, queries: Sequence[Ids], passages: Sequence[Ids]) -> dict[str, Any]:
        """Returns what `Model.forward` takes as `queries`, `passages` and `texts`.

        `texts` holds the groups, each with tensors of shape (texts, length of the group): `input_ids`,
        `attention_mask`, `places` (index into `texts["tokens"]`, the batch's distinct tokens) and `columns` (index
        into the batch's sparse vocabulary: the tokens of its queries that are not special; `texts["width"]` for
        tokens that are not in it). The rows of all groups, taken in the order `texts["order"]` (None: as they are),
        are the queries and then the passages.
        """
        texts = [*queries, *passages]
        lengths = np.array([len(text) for text in texts])
        flat = np.concatenate(texts).astype(np.int64)
        tokens, places = np.unique(np.append(flat, self.pad_token_id), return_inverse=True)
        vocabulary = np.setdiff1d(np.concatenate(queries), self.special_tokens)
        columns = _positions(vocabulary, flat)
        sides = [self._padded_length(lengths[: len(queries)]), self._padded_length(lengths[len(queries) :])]
        groups = self._groups(lengths, len(queries), sides)
        starts = np.cumsum(lengths) - lengths
        fill = {
            "input_ids": (flat, self.pad_token_id),
            "attention_mask": (np.ones_like(flat), 0),
            "places": (places[:-1], int(places[-1])),
            "columns": (columns, len(vocabulary)),
        }
        return {
            "queries": {"attention_mask": torch.from_numpy(self._mask(lengths[: len(queries)], sides[0]).astype(int))},
            "passages": {"padded_length": sides[1]},
            "texts": {
                "tokens": torch.from_numpy(tokens),
                "width": len(vocabulary),
                "padded_length": max(sides),
                "packed": self.packed and not self.like_upstream,
                "order": _order(np.concatenate([rows for rows, _ in groups])),
                "groups": [
                    {
                        name: self._padded(values, starts[rows], lengths[rows], length, empty)
                        for name, (values, empty) in fill.items()
                    }
                    for rows, length in groups
                ],
            },
        }

    def _padded_length(self, lengths: _Ints) -> int:
        multiple = self.pad_to_multiple_of or 1
        return -(-int(lengths.max()) // multiple) * multiple

    def _groups(self, lengths: _Ints, queries: int, sides: Sequence[int]) -> list[tuple[_Ints, int]]:
        """Returns the groups: numbers of their texts, and the length they are padded to."""
        if self.like_upstream:
            sizes = [queries, len(lengths) - queries]
            parts = [_chunks(size, self._most(size)) for size in sizes]
            return [
                (rows + start, side)
                for part, start, side in zip(parts, (0, queries), sides, strict=True)
                for rows in part
            ]
        most = self._most(len(lengths))
        groups = _chunks(len(lengths), most) if self.packed else self._of_similar_length(lengths, most)
        return [(rows, int(lengths[rows].max())) for rows in groups]

    def _of_similar_length(self, lengths: _Ints, most: int) -> list[_Ints]:
        order = np.argsort(lengths, kind="stable")
        return np.split(order, partition(lengths[order], self.group_cost, most)[:-1])

    def _most(self, texts: int) -> int:
        return self.sub_batch_size if self.sub_batch_size and self.sub_batch_size > 0 else texts

    def _mask(self, lengths: _Ints, length: int) -> npt.NDArray[np.bool_]:
        mask: npt.NDArray[np.bool_] = np.arange(length) < lengths[:, None]
        return mask[:, ::-1].copy() if self.padding_side == "left" else mask

    def _padded(self, values: _Ints, starts: _Ints, lengths: _Ints, length: int, empty: int) -> torch.Tensor:
        padded = np.full((len(lengths), length), empty, dtype=np.int64)
        parts = [values[start : start + size] for start, size in zip(starts, lengths, strict=True)]
        padded[self._mask(lengths, length)] = np.concatenate(parts)
        return torch.from_numpy(padded)


def partition(lengths: _Ints, group_cost: int, most: int) -> list[int]:
    """Splits ascending lengths into groups at the least cost.

    A group costs its texts times its longest length, and `group_cost`.

    Args:
        lengths: ascending, shape (texts,).
        group_cost: of a group, whatever its size.
        most: texts in a group at most.

    Returns:
        Where each group ends; the last is the number of texts.
    """
    cost = np.full(len(lengths) + 1, np.inf)
    cost[0] = 0
    before = np.zeros(len(lengths) + 1, dtype=np.int64)
    for end in range(1, len(lengths) + 1):
        first = max(0, end - most)
        starts = np.arange(first, end)
        candidates = cost[starts] + (end - starts) * lengths[end - 1] + group_cost
        best = int(candidates.argmin())
        cost[end], before[end] = candidates[best], starts[best]
    ends = [len(lengths)]
    while before[ends[0]] > 0:
        ends.insert(0, int(before[ends[0]]))
    return ends


def _order(rows: _Ints) -> torch.Tensor | None:
    """Returns the places of the texts among `rows`, or None where each is in its own place."""
    return None if np.array_equal(rows, np.arange(len(rows))) else torch.from_numpy(np.argsort(rows))


def _positions(vocabulary: Ids, tokens: _Ints) -> _Ints:
    """Returns each token's index in the sorted `vocabulary`, or `len(vocabulary)` where it is not in it."""
    if not len(vocabulary):
        return np.zeros_like(tokens)
    found = np.minimum(np.searchsorted(vocabulary, tokens), len(vocabulary) - 1)
    return np.where(vocabulary[found] == tokens, found, len(vocabulary))


def _chunks(size: int, most: int) -> list[_Ints]:
    return [np.arange(start, min(start + most, size)) for start in range(0, size, most)]
