import math

import pytest
import pytrec_eval

from trainables.scoring.measures import Scores, measure
from trainables.scoring.metric import MEASURES

TREC_NAMES = {"ndcg_at_10": "ndcg_cut_10", "recall_at_10": "recall_10", "recall_at_100": "recall_100"}


def test_one_relevant_passage_at_rank_two() -> None:
    assert measure(["p1", "p2", "p3"], {"p2": 1}) == {
        "ndcg_at_10": 1 / math.log2(3),
        "mrr_at_10": 1 / 2,
        "recall_at_10": 1.0,
        "recall_at_100": 1.0,
    }


def test_relevance_is_the_gain() -> None:
    found = measure(["some", "none", "best"], {"best": 3, "some": 1, "none": 0})
    assert found["ndcg_at_10"] == (1 / 1 + 3 / 2) / (3 / 1 + 1 / math.log2(3))
    assert found["recall_at_10"] == 1.0


def test_rank_eleven_counts_for_recall_at_100_only() -> None:
    ranking = [f"p{number}" for number in range(1, 12)]
    assert measure(ranking, {"p11": 1}) == dict(zip(MEASURES, (0.0, 0.0, 0.0, 1.0), strict=True))


def test_a_relevant_passage_outside_of_the_ranking_lowers_recall_and_the_ideal_is_full() -> None:
    found = measure(["p1"], {"p1": 1, "p2": 1})
    assert found["recall_at_100"] == 1 / 2
    assert found["ndcg_at_10"] == 1 / (1 + 1 / math.log2(3))


@pytest.mark.parametrize(
    ("ranking", "relevant"),
    [
        (["a", "b", "c", "d"], {"d": 2, "b": 1, "x": 3, "c": 0}),
        ([f"{n:03}" for n in range(100)], {"009": 1, "010": 2, "099": 1, "200": 1}),
        (["a", "b"], {"b": -1, "a": 1}),
        (["a", "b"], {"a": 0}),
        (["a"] + [f"{n}" for n in range(98)] + ["z"], {f"r{n}": 1 for n in range(12)} | {"z": 1}),
    ],
)
def test_equals_trec_eval(ranking: list[str], relevant: dict[str, int]) -> None:
    run = {passage: float(-rank) for rank, passage in enumerate(ranking)}
    evaluator = pytrec_eval.RelevanceEvaluator({"q": relevant}, {"ndcg_cut.10", "recall.10,100"})
    expected = evaluator.evaluate({"q": run})["q"]
    found = measure(ranking, relevant)
    for ours, trec in TREC_NAMES.items():
        assert found[ours] == pytest.approx(expected[trec], abs=1e-12)


def test_scores_average_over_queries_and_survive_json() -> None:
    rankings = {"sparse": {"q1": ["a", "b"], "q2": ["b", "a"]}, "dense": {"q1": ["b", "a"], "q2": ["b", "a"]}}
    scores = Scores.of("dev", rankings, {"q1": {"a": 1}, "q2": {"b": 1}})
    assert scores.means["sparse.mrr_at_10"] == 1.0
    assert scores.means["dense.mrr_at_10"] == (1 / 2 + 1) / 2
    assert scores.per_query["dense.mrr_at_10"] == {"q1": 0.5, "q2": 1.0}
    assert scores.retrieved == {"q1": ["b", "a"], "q2": ["b", "a"]}
    assert Scores.from_json(scores.to_json()) == scores


def test_an_objective_is_a_score_like_others() -> None:
    per_query = {"dense.ndcg_at_10": {"q1": 1.0, "q2": 0.5}, "sparse.ndcg_at_10": {"q1": 0.0, "q2": 0.5}}
    scores = Scores(split="dev", per_query=per_query, retrieved={})
    weighted = "0.75*dense.ndcg_at_10+0.25*sparse.ndcg_at_10"
    assert scores.with_metric(weighted).per_query[weighted] == {"q1": 0.75, "q2": 0.5}
    both = "dense.ndcg_at_10,sparse.ndcg_at_10"
    assert scores.with_metric(both).per_query[both] == {"q1": 0.5, "q2": 0.5}  # of two objectives, their mean
    assert scores.with_metric("dense.ndcg_at_10") is scores
