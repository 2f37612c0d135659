import numpy as np
import pytrec_eval
import torch

from trainables.scoring.encoding import Embeddings
from trainables.scoring.ranking import Matcher, TopK, sort_keys

ALL = np.arange(2)


def ranking(scores: list[float], ids: list[str], depth: int) -> list[str]:
    """Returns the best ids, the passages added one at a time."""
    sorted_ids = sorted(ids)
    top = TopK(1, depth, torch.device("cpu"))
    for score, passage in zip(scores, ids, strict=True):
        top.add(sort_keys(torch.tensor([[score]]), torch.tensor([sorted_ids.index(passage)])))
    return next(top.passages(sorted_ids))


def test_scores_sort_descending_over_all_signs() -> None:
    assert ranking([0.5, -2.0, 3e38, -1e-38, 0.0, -3e38], list("abcdef"), 6) == list("caedbf")


def test_equal_scores_sort_by_id_descending_and_zero_has_no_sign() -> None:
    assert ranking([0.0, -0.0, 0.0], ["p1", "p10", "p2"], 3) == ["p2", "p10", "p1"]


def test_only_the_best_are_kept() -> None:
    assert ranking([1.0, 4.0, 3.0, 2.0], list("abcd"), 2) == ["b", "c"]


def test_ties_rank_as_in_trec_eval() -> None:
    ids = ["9", "10", "a", "B", "é", "西", "aa", "_"]
    scores = [1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 0.5, 0.5]
    run = {"q": dict(zip(ids, scores, strict=True))}
    found = ranking(scores, ids, len(ids))
    for passage in ids:
        evaluator = pytrec_eval.RelevanceEvaluator({"q": {passage: 1}}, {"recip_rank"})
        assert evaluator.evaluate(run)["q"]["recip_rank"] == 1 / (found.index(passage) + 1)


def test_merged_parts_equal_the_whole() -> None:
    torch.manual_seed(0)
    scores = torch.randint(0, 30, (5, 400)).float()
    keys = sort_keys(scores, torch.randperm(400))
    parts, whole = TopK(5, 100, scores.device), TopK(5, 100, scores.device)
    for part in keys.split(37, dim=1):
        parts.add(part)
    whole.add(keys)
    assert torch.equal(parts.keys, whole.keys)


def texts(ids: list[list[int]], weights: list[list[float]], vectors: list[list[list[float]]]) -> Embeddings:
    """Returns embeddings of texts padded with token 0."""
    tokens = torch.tensor(ids)
    return Embeddings(tokens, torch.tensor(weights), torch.tensor(weights), torch.tensor(vectors), tokens != 0)


def test_the_sparse_score_is_the_dot_product_of_the_largest_weights_of_shared_tokens() -> None:
    one, none = [[1.0]], [[0.0]]
    queries = texts([[5, 6], [9, 5]], [[2.0, 3.0], [7.0, 1.0]], [one, one])
    passages = texts([[6, 6, 5], [8, 9, 0]], [[0.5, 0.25, 1.0], [4.0, 2.0, 0.0]], [one * 2, one + none])
    scores = Matcher([(queries, ALL)], 2, ["sparse"]).scores(passages)["sparse"]
    assert scores.tolist() == [[2.0 * 1.0 + 3.0 * 0.5, 0.0], [1.0 * 1.0, 7.0 * 2.0]]


def test_the_colbert_score_is_the_mean_of_the_best_similarities_without_padding() -> None:
    x, y, nothing = [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]
    queries = texts([[1, 5, 6], [1, 5, 0]], [[0.0] * 3] * 2, [[x, y], [x, nothing]])
    passages = texts([[1, 5, 6], [1, 5, 0]], [[0.0] * 3] * 2, [[x, [0.0, 0.5]], [[-1.0, 0.25], nothing]])
    scores = Matcher([(queries, ALL)], 2, ["colbert"]).scores(passages)["colbert"]
    assert scores.tolist() == [[(1.0 + 0.5) / 2, (-1.0 + 0.25) / 2], [1.0, -1.0]]
