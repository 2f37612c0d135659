"""Heads against upstream's formulas, values and gradients."""

import pytest
import torch
from torch import Tensor

from trainables.m3 import heads
from trainables.m3.heads import colbert_scores, sparse_vectors, token_vectors


def test_sparse_vectors_keep_the_largest_weight_of_each_column() -> None:
    weights = torch.tensor([0.5, 2.0, 1.0, 0.25, 0.5])
    cells = torch.tensor([0, 1, 1, 3, 2])  # (texts, 2), one row after the other
    assert sparse_vectors(weights, cells, texts=2, width=2).tolist() == [[0.5, 2.0], [0.5, 0.25]]


def test_equal_largest_weights_share_the_gradient() -> None:
    weights = torch.tensor([2.0, 2.0, 1.0], requires_grad=True)
    sparse_vectors(weights, torch.tensor([0, 0, 0]), texts=1, width=1).sum().backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [0.5, 0.5, 0.0]


def test_equal_weights_in_16_bits_are_counted_beyond_256() -> None:
    weights = torch.ones(1000, dtype=torch.bfloat16, requires_grad=True)
    vectors = sparse_vectors(weights, torch.zeros(1000, dtype=torch.int64), texts=1, width=1)
    assert vectors.dtype == torch.bfloat16
    vectors.sum().backward()
    assert weights.grad is not None
    assert weights.grad.float().sum().item() == pytest.approx(1.0, rel=0.01)


def test_without_columns_there_are_no_sparse_scores() -> None:
    nothing = torch.empty(0)
    assert sparse_vectors(nothing, torch.empty(0, dtype=torch.int64), texts=2, width=0).shape == (2, 0)


def upstream_sparse(weights: Tensor, ids: Tensor, vocabulary: int, special: list[int]) -> Tensor:
    """Texts x length x vocabulary, as upstream's `_sparse_embedding` in training."""
    spread = weights.new_zeros(*ids.shape, vocabulary).scatter(-1, ids.unsqueeze(-1), weights.unsqueeze(-1))
    vectors = spread.max(dim=1).values
    vectors[:, special] *= 0.0
    return vectors


def pooled(weights: Tensor, columns: Tensor, width: int) -> Tensor:
    """Pools padded weights; `width` is no column."""
    cells = torch.arange(len(weights))[:, None] * width + columns
    return sparse_vectors(weights[columns < width], cells[columns < width], len(weights), width)


def test_sparse_scores_and_gradients_equal_upstreams() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 30, (3, 6), generator=generator), torch.randint(0, 30, (6, 9), generator=generator)]
    weights = [torch.rand(i.shape, generator=generator, dtype=torch.float64, requires_grad=True) for i in ids]
    upstream = [upstream_sparse(w, i, 30, special=[0, 1, 2, 3]) for w, i in zip(weights, ids, strict=True)]
    expected = upstream[0] @ upstream[1].T
    expected_gradients = torch.autograd.grad(expected.square().sum(), weights)

    tokens = ids[0].unique()
    vocabulary = tokens[tokens > 3]
    place = torch.full((30,), len(vocabulary))
    place[vocabulary] = torch.arange(len(vocabulary))
    vectors = [pooled(w, place[i], len(vocabulary)) for w, i in zip(weights, ids, strict=True)]
    scores = vectors[0] @ vectors[1].T

    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(torch.autograd.grad(scores.square().sum(), weights), expected_gradients)


def test_colbert_score_is_the_mean_over_query_tokens_of_the_best_match() -> None:
    query = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    passages = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[-1.0, -1.0], [0.0, 0.0]]])  # the second is padded
    # (max(3, 0) + max(0, 2)) / 2, and zero vectors are the best match of a passage with none better
    assert colbert_scores(query, passages, torch.tensor([[2]])).tolist() == [[2.5, 0.0]]


def test_colbert_scores_in_chunks_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(n, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True) for n in (3, 7)]
    lengths = torch.tensor([[5], [4], [3]])
    whole = colbert_scores(sides[0], sides[1], lengths)
    expected = torch.autograd.grad(whole.square().sum(), sides)

    monkeypatch.setattr(heads, "_SCORES_AT_ONCE", 160)  # two passages of 3 x 5 x 5 similarities
    chunked = colbert_scores(sides[0], sides[1], lengths)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(torch.autograd.grad(chunked.square().sum(), sides), expected)


def test_token_vectors_go_to_their_places_among_queries_and_passages() -> None:
    """One query of two places, two passages of three."""
    vectors = torch.tensor([[1.0], [2.0], [3.0]])
    queries, passages = token_vectors(vectors, torch.tensor([1, 2, 6]), [(1, 2), (2, 3)])
    assert queries.tolist() == [[[0.0], [1.0]]]
    assert passages.tolist() == [[[2.0], [0.0], [0.0]], [[0.0], [3.0], [0.0]]]
