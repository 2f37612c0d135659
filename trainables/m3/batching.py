"""Lays the texts of a training batch out for the encoder: end to end, or in groups of similar length.

Everything that depends on the batch's contents is computed here, on the host and from token ids, so that the training
step itself asks the device for nothing.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainables.m3.tokens import Ids, Tokeniser
from trainables.varlen import positions

_DRAWS_KEPT = 8
"""Batches whose generator states are kept: the loader makes one batch before it is needed."""

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
    padding_position: int | None
    """See `varlen.padding_position`."""
    like_upstream: bool
    """One group of queries and one of passages, each in its order and padded to its longest: dropout draws the same."""

    def batch(self, queries: Sequence[Ids], passages: Sequence[Ids]) -> dict[str, Any]:
        """Returns what `Model.forward` takes as `queries`, `passages` and `texts`.

        `texts` holds, beside its `groups`:
        `tokens`, the batch's distinct tokens; `counts` of queries and passages; `width`, the number of columns of the
        batch's sparse vocabulary (the tokens of its queries that are not special); `order`, by which the rows of all
        groups become the queries and then the passages (None: as they are); `shapes` of queries and passages, (texts,
        padded length without the first token), and `slots`, where the token vectors of all groups belong in these two,
        one after the other; and on the host, `lengths` of all texts.

        A group's hidden states are taken as rows of one matrix, padded or not. It holds `input_ids`, `places` (index
        into `tokens`), the rows of each text's `first` and `last` token, those of the tokens that have a token vector
        (`inner`) and of those with a column (`scored`, with their `cells` of (texts, width)), and on the host `lengths`
        and `longest`. Padded, it has an `attention_mask`; packed, `positions`, `cu_seqlens` and `grid` (the tokens'
        cells of (texts, longest)).
        """
        texts = [*queries, *passages]
        every = _Texts.of(texts, len(queries))
        tokens, places = np.unique(np.append(every.ids, self.pad_token_id), return_inverse=True)
        vocabulary = np.setdiff1d(np.concatenate(queries), self.special_tokens)
        columns = _columns(vocabulary, every.ids)
        sides = [self._padded_length(every.lengths[every.side(part)]) for part in (0, 1)]
        groups = self._groups(every.lengths, len(queries), sides)
        parts = [_Part.of(every, rows, length, self._is_left, self._end_to_end) for rows, length in groups]
        slots = _slots(every, sides, self._is_left)
        mask = self._mask(every.lengths[: len(queries)], sides[0])
        return {
            "queries": {"attention_mask": torch.from_numpy(mask.astype(int))},
            "passages": {},
            "texts": {
                "tokens": torch.from_numpy(tokens),
                "counts": (len(queries), len(passages)),
                "lengths": every.lengths,
                "width": len(vocabulary),
                "packed": self._end_to_end,
                "order": _order(np.concatenate([rows for rows, _ in groups])),
                "shapes": ((len(queries), sides[0] - 1), (len(passages), sides[1] - 1)),
                "slots": _as_tensor(np.concatenate([found[found >= 0] for found in (slots[p.tokens] for p in parts)])),
                "groups": [
                    part.common(slots >= 0, columns, len(vocabulary)) | self._laid_out(part, every, places)
                    for part in parts
                ],
            },
        }

    def _laid_out(self, part: "_Part", every: "_Texts", places: npt.NDArray[Any]) -> dict[str, Any]:
        """Returns what belongs to packed rows alone, or to padded ones."""
        if self._end_to_end:
            return part.packed(every, places, self.padding_position)
        return part.padded(every, places, self.pad_token_id)

    @property
    def _end_to_end(self) -> bool:
        return self.packed and not self.like_upstream

    @property
    def _is_left(self) -> bool:
        return self.padding_side == "left"

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
        return mask[:, ::-1].copy() if self._is_left else mask


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """The texts of a batch, end to end."""

    ids: _Ints
    """(tokens,)"""
    lengths: _Ints
    """(texts,)"""
    starts: _Ints
    """(texts,)"""
    text: _Ints
    """Number of each token's text, (tokens,)."""
    offsets: _Ints
    """Number of tokens before each in its own text, (tokens,)."""
    queries: int
    """The first texts."""

    @classmethod
    def of(cls, texts: Sequence[Ids], queries: int) -> "_Texts":
        lengths = np.array([len(text) for text in texts])
        starts = np.cumsum(lengths) - lengths
        text = np.repeat(np.arange(len(texts)), lengths)
        ids = np.concatenate(texts).astype(np.int64)
        offsets = np.arange(len(ids)) - starts[text]
        return cls(ids=ids, lengths=lengths, starts=starts, text=text, offsets=offsets, queries=queries)

    def side(self, part: int) -> slice:
        """Returns the queries (0) or the passages (1) among the texts."""
        return slice(self.queries, None) if part else slice(0, self.queries)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A group: its texts, and where their tokens are in its matrix of hidden states."""

    lengths: _Ints
    """(texts,)"""
    length: int
    """Of the padded texts."""
    tokens: _Ints
    """The group's tokens among all of the batch, (tokens,)."""
    text: _Ints
    """Number of each token's text in the group, (tokens,)."""
    cells: _Ints
    """The tokens' places in (texts, length), (tokens,)."""
    rows: _Ints
    """The tokens' rows in the matrix of hidden states, (tokens,)."""
    first: _Ints
    """Rows of the first place of each text, (texts,)."""

    @classmethod
    def of(cls, every: _Texts, texts: _Ints, length: int, left: bool, packed: bool) -> "_Part":
        lengths = every.lengths[texts]
        starts = np.cumsum(lengths) - lengths
        text = np.repeat(np.arange(len(texts)), lengths)
        tokens = np.arange(len(text)) + (every.starts[texts] - starts)[text]
        cells = text * length + every.offsets[tokens] + (length - lengths[text] if left else 0)
        rows, first = (np.arange(len(text)), starts) if packed else (cells, np.arange(len(texts)) * length)
        return cls(lengths=lengths, length=length, tokens=tokens, text=text, cells=cells, rows=rows, first=first)

    def common(self, inner: npt.NDArray[np.bool_], columns: _Ints, width: int) -> dict[str, Any]:
        """Returns what the heads take."""
        column = columns[self.tokens]
        scored = column < width
        return {
            "first": _as_tensor(self.first),
            "last": _as_tensor(self.rows[np.cumsum(self.lengths) - 1]),
            "inner": _as_tensor(self.rows[inner[self.tokens]]),
            "scored": _as_tensor(self.rows[scored]),
            "cells": _as_tensor((self.text * width + column)[scored]),
            "lengths": self.lengths,
            "longest": self.length,
        }

    def packed(self, every: _Texts, places: _Ints, padding: int | None) -> dict[str, Any]:
        """Returns what the encoder takes of texts end to end."""
        starts = np.cumsum(self.lengths) - self.lengths
        ids = every.ids[self.tokens]
        cu_seqlens = np.append(starts, len(ids)).astype(np.int32)
        return {
            "input_ids": _as_tensor(ids),
            "places": _as_tensor(places[self.tokens]),
            "positions": _as_tensor(positions(ids, every.offsets[self.tokens], starts[self.text], padding)),
            "cu_seqlens": torch.from_numpy(cu_seqlens),
            "grid": _as_tensor(self.cells),
        }

    def padded(self, every: _Texts, places: _Ints, pad_token_id: int) -> dict[str, Any]:
        """Returns what the encoder takes of padded texts, each of shape (texts, length)."""
        return {
            "input_ids": self._grid(every.ids[self.tokens], pad_token_id),
            "places": self._grid(places[self.tokens], int(places[-1])),
            "attention_mask": self._grid(np.ones_like(self.tokens), 0),
        }

    def _grid(self, values: _Ints, empty: int) -> torch.Tensor:
        grid = np.full(len(self.lengths) * self.length, empty, dtype=np.int64)
        grid[self.cells] = values
        return torch.from_numpy(grid.reshape(len(self.lengths), self.length))


def _slots(every: _Texts, sides: Sequence[int], left: bool) -> _Ints:
    """Returns where each token's vector belongs among those of all queries and passages, -1 for a first one's."""
    numbers = np.arange(len(every.lengths))
    is_passage = numbers >= every.queries
    length = np.where(is_passage, sides[1], sides[0])
    before = np.where(is_passage, every.queries * (sides[0] - 1), 0)
    starts = before + (numbers - every.queries * is_passage) * (length - 1)
    column = every.offsets + (length - every.lengths if left else np.zeros_like(length))[every.text]
    return np.where(column > 0, starts[every.text] + column - 1, -1)


def _as_tensor(values: _Ints) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


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


def _columns(vocabulary: Ids, tokens: _Ints) -> _Ints:
    """Returns each token's index in the sorted `vocabulary`, or `len(vocabulary)` where it is not in it."""
    if not len(vocabulary):
        return np.zeros_like(tokens)
    found = np.minimum(np.searchsorted(vocabulary, tokens), len(vocabulary) - 1)
    return np.where(vocabulary[found] == tokens, found, len(vocabulary))


def _chunks(size: int, most: int) -> list[_Ints]:
    return [np.arange(start, min(start + most, size)) for start in range(0, size, most)]


@dataclass
class Collator:
    """Makes the batches of a training from upstream's samples, of either of its datasets."""

    layout: Layout
    query_tokens: Tokeniser
    passage_tokens: Tokeniser
    draws: dict[int, Any] = field(default_factory=dict)
    """Number of batches made -> state of Python's generator after it, for the last few."""

    def start(self, batches: int) -> None:
        """Goes on counting from a number of batches."""
        self.draws = {batches: random.getstate()}

    def __call__(self, features: list[tuple[Any, ...]]) -> dict[str, Any]:
        made = max(self.draws, default=0) + 1
        self.draws[made] = random.getstate()
        self.draws.pop(made - _DRAWS_KEPT, None)
        return self._batch(features)

    def _batch(self, features: list[tuple[Any, ...]]) -> dict[str, Any]:
        queries, passages, teacher_scores = (_flat(feature[place] for feature in features) for place in range(3))
        batch = self.layout.batch(self.query_tokens(queries), self.passage_tokens(passages))
        alone = len(features[0]) > 3 and features[0][3]
        # as bits, for the trainer makes 16 bits of every other float where DeepSpeed trains in them
        scores = torch.tensor(teacher_scores, dtype=torch.float32).view(torch.int32) if teacher_scores else None
        return batch | {"teacher_scores": scores, "no_in_batch_neg_flag": alone}


def _flat(values: Iterable[Any]) -> list[Any]:
    """Returns the values end to end: texts or lists of texts; None for no scores is left out."""
    lists = [value if isinstance(value, list) else [value] for value in values if value is not None]
    return [item for each in lists for item in each]
