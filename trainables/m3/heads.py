"""The sparse and the multi-vector head of BGE-M3 without their large intermediate tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_SCORES_AT_ONCE = 2**26
"""Most token-to-token similarities that are held at once (float32: 256 MiB)."""


def sparse_vectors(weights: Tensor, cells: Tensor, texts: int, width: int) -> Tensor:
    """Pools token weights into vectors over the tokens that a batch's queries contain.

    Only those tokens can score: a query's weight is zero for all others. Where several tokens of a text share the
    largest weight of a column, they share its gradient evenly; upstream gives it to one of them. How many they are is
    counted in float32: in 16 bits a count ends at 256.

    Args:
        weights: non-negative weights of tokens, (tokens,).
        cells: each token's text x `width` + column, (tokens,).
        texts: number of texts.
        width: number of columns.

    Returns:
        Largest weight of each column, zero where a text has none, (texts, width).
    """
    wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
    vectors = wide.new_zeros(texts * width).scatter_reduce(0, cells, wide, reduce="amax")
    return vectors.view(texts, width).to(weights.dtype)


def token_vectors(vectors: Tensor, slots: Tensor, shapes: Sequence[tuple[int, int]]) -> Sequence[Tensor]:
    """Gives every text's vectors a row of their own.

    Args:
        vectors: (tokens, size)
        slots: where they belong among the places of `shapes`, one after the other, (tokens,).
        shapes: (texts, length) of queries and passages.

    Returns:
        (texts, length, size) of queries and passages, zero where there is no token.
    """
    places = [texts * length for texts, length in shapes]
    sides = torch.split(vectors.new_zeros(sum(places), vectors.shape[1]).index_copy(0, slots, vectors), places)
    return [side.view(*shape, -1) for side, shape in zip(sides, shapes, strict=True)]


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
