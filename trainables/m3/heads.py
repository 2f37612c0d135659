"""The sparse and the multi-vector head of BGE-M3 without their large intermediate tensors."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_SCORES_AT_ONCE = 2**26
"""Most token-to-token similarities that are held at once (float32: 256 MiB)."""


def sparse_vectors(weights: Tensor, columns: Tensor, width: int) -> Tensor:
    """Pools token weights into vectors over the tokens that a batch's queries contain.

    Only those tokens can score: a query's weight is zero for all others. Where several tokens of a text share the
    largest weight of a column, they share its gradient evenly; upstream gives it to one of them.

    Args:
        weights: non-negative weight of every token, (texts, length).
        columns: column of every token, (texts, length); `width` for a token without one.
        width: number of columns.

    Returns:
        Largest weight of each column, zero where a text has none, (texts, width).
    """
    vectors = weights.new_zeros(len(weights), width + 1)
    return vectors.scatter_reduce(1, columns, weights, reduce="amax")[:, :width]


def colbert_scores(queries: Tensor, passages: Tensor, query_lengths: Tensor) -> Tensor:
    """Compares token vectors: the mean over a query's tokens of their best similarity to a passage's.

    Padded positions hold zero vectors, as upstream's do: they can be a passage's best match.

    Args:
        queries: (queries, length, size)
        passages: (passages, length, size)
        query_lengths: number of vectors of each query that are no padding, (queries, 1).

    Returns:
        (queries, passages)
    """
    per_passage = queries.shape[0] * queries.shape[1] * passages.shape[1]
    chunks = torch.split(passages, max(1, _SCORES_AT_ONCE // max(1, per_passage)))
    if len(chunks) == 1:
        best = _best_similarity(queries, passages)
    else:
        best = torch.cat([checkpoint(_best_similarity, queries, chunk, use_reentrant=False) for chunk in chunks], dim=1)
    return best / query_lengths


def _best_similarity(queries: Tensor, passages: Tensor) -> Tensor:
    similarity = torch.einsum("qin,pjn->qipj", queries, passages)
    return similarity.max(-1).values.sum(1)


def pad_vectors(vectors: Tensor, length: int) -> Tensor:
    """Appends zero vectors: (texts, n, size) to (texts, length, size)."""
    return nn.functional.pad(vectors, (0, 0, 0, length - vectors.shape[1]))
