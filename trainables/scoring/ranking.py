"""Scores of passages against all queries at once, and the exact best of them, ties broken as trec_eval breaks them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from trainables.scoring.encoding import Embeddings

_EMPTY = torch.iinfo(torch.int64).min
_SIMILARITIES_AT_ONCE = 2**25
"""Elements of the largest matrix of token similarities (float32: 128 MiB)."""


class Matcher:
    """Compares batches of passages with all queries of a split, one score matrix per head.

    Args:
        batches: query embeddings with the queries' numbers, every query once.
        queries: how many there are.
        heads: some of dense, sparse, colbert.
    """

    def __init__(
        self, batches: Iterable[tuple[Embeddings, npt.NDArray[np.int64]]], queries: int, heads: Sequence[str]
    ) -> None:
        self.queries = queries
        self._heads = heads
        self._batches = [(batch, torch.from_numpy(numbers).to(batch.ids.device)) for batch, numbers in batches]
        if "dense" in heads:
            order = torch.cat([numbers for _, numbers in self._batches]).argsort()
            vectors = [batch.dense for batch, _ in self._batches if batch.dense is not None]
            self._query_vectors = torch.cat(vectors)[order]
        if "sparse" in heads:
            self._vocabulary = torch.unique(torch.cat([batch.ids.flatten() for batch, _ in self._batches]))
            self._query_weights = self._sparse_queries()

    def scores(self, passages: Embeddings) -> dict[str, Tensor]:
        """Return head -> scores, float32 of shape (queries, passages)."""
        return {head: getattr(self, f"_{head}")(passages) for head in self._heads}

    def _dense(self, passages: Embeddings) -> Tensor:
        assert passages.dense is not None
        return F.linear(self._query_vectors, passages.dense)

    def _sparse(self, passages: Embeddings) -> Tensor:
        scores: Tensor = torch.sparse.mm(self._query_weights, self._token_weights(passages).T)
        return scores

    def _colbert(self, passages: Embeddings) -> Tensor:
        scores = passages.mask.new_empty(self.queries, len(passages.mask), dtype=torch.float32)
        for batch, numbers in self._batches:
            step = max(1, _SIMILARITIES_AT_ONCE // (batch.ids.shape[1] * passages.ids.numel()))
            for start in range(0, len(numbers), step):
                part = slice(start, start + step)
                scores[numbers[part]] = _late_interaction(batch, passages, part)
        return scores

    def _token_weights(self, texts: Embeddings) -> Tensor:
        """Return (texts, words of the queries): each word's largest weight; other words do not count."""
        assert texts.weights is not None
        column = torch.searchsorted(self._vocabulary, texts.ids).clamp(max=len(self._vocabulary) - 1)
        known = self._vocabulary[column] == texts.ids
        weights = texts.weights.new_zeros(len(texts.ids), len(self._vocabulary))
        return weights.scatter_reduce(1, column, texts.weights * known, "amax")

    def _sparse_queries(self) -> Tensor:
        """Return (queries, words of the queries), sparse."""
        places, weights = [], []
        for batch, numbers in self._batches:
            matrix = self._token_weights(batch).to_sparse()
            row, column = matrix.indices()
            places.append(torch.stack([numbers[row], column]))
            weights.append(matrix.values())
        shape = (self.queries, len(self._vocabulary))
        return torch.sparse_coo_tensor(
            torch.cat(places, dim=1), torch.cat(weights), shape, check_invariants=True
        ).coalesce()


def _late_interaction(queries: Embeddings, passages: Embeddings, part: slice) -> Tensor:
    """Mean over a query's tokens of the best similarity to a token of the passage; first tokens are left out."""
    assert queries.vectors is not None
    assert passages.vectors is not None
    vectors, mask = queries.vectors[part], queries.mask[part, 1:, None]
    similarities = F.linear(vectors.flatten(0, 1), passages.vectors.flatten(0, 1))
    similarities = similarities.view(*vectors.shape[:2], *passages.vectors.shape[:2])
    best = similarities.masked_fill_(~passages.mask[:, 1:], -torch.inf).amax(dim=-1)
    return (best * mask).sum(dim=1) / mask.sum(dim=1)


def sort_keys(scores: Tensor, positions: Tensor) -> Tensor:
    """Pack scores and passages into integers whose order is trec_eval's: by score, then by passage id, descending.

    Args:
        scores: (queries, passages), float32, finite.
        positions: (passages,), each passage's place among all passage ids in ascending order, below 2**31.

    Returns:
        (queries, passages), int64: the score's bits, made to sort as integers do, above the position's 32 bits.
    """
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 makes -0.0 and 0.0 one score
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(torch.int64) << 32) | positions


class TopK:
    """The best ``depth`` passages seen so far for each of a number of queries."""

    def __init__(self, queries: int, depth: int, device: torch.device) -> None:
        self.depth = depth
        self.keys = torch.full((queries, depth), _EMPTY, dtype=torch.int64, device=device)
        """(queries, depth), as `sort_keys` packs them, best first."""

    def add(self, keys: Tensor) -> None:
        """Merge in keys of other passages, shape (queries, any)."""
        self.keys = torch.cat([self.keys, keys], dim=1).topk(self.depth, dim=1).values

    def passages(self, sorted_ids: Sequence[str]) -> Iterator[list[str]]:
        """Yield each query's passage ids, best first; ``sorted_ids`` are all ids in ascending order."""
        for row in self.keys.tolist():
            yield [sorted_ids[key & 0xFFFFFFFF] for key in row if key != _EMPTY]
