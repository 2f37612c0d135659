import pytest

from trainables.scoring.metric import Metric, head_and_measure, score_name

DENSE, SPARSE = "dense.ndcg_at_10", "sparse.mrr_at_10"


def test_a_score_is_called_by_its_head_and_its_measure() -> None:
    assert score_name("dense", "ndcg_at_10") == DENSE
    assert head_and_measure(DENSE) == ("dense", "ndcg_at_10")


def test_a_metric_is_read_as_weights_for_each_objective() -> None:
    assert [each.weights for each in Metric.read(DENSE).objectives] == [{DENSE: 1.0}]
    read = Metric.read(f"0.7*{DENSE} + .3*{SPARSE}, colbert.ndcg_at_10")
    assert [each.weights for each in read.objectives] == [{DENSE: 0.7, SPARSE: 0.3}, {"colbert.ndcg_at_10": 1.0}]
    assert str(read) == f"0.7*{DENSE}+.3*{SPARSE},colbert.ndcg_at_10"
    assert read.names == (f"0.7*{DENSE}+.3*{SPARSE}", "colbert.ndcg_at_10")
    assert read.heads == {"dense", "sparse", "colbert"}


@pytest.mark.parametrize(
    ("text", "is_score", "is_pareto", "label"),
    [
        (DENSE, True, False, DENSE),
        (f"2*{DENSE}", False, False, f"2*{DENSE}"),
        (f"{DENSE}+{SPARSE}", False, False, f"{DENSE}+{SPARSE}"),
        (f"{DENSE},{SPARSE}", False, True, f"mean of {DENSE} and {SPARSE}"),
    ],
)
def test_a_metric_knows_what_it_is(text: str, is_score: bool, is_pareto: bool, label: str) -> None:
    metric = Metric.read(text)
    assert (metric.is_score, metric.is_pareto, metric.label) == (is_score, is_pareto, label)


def test_the_value_of_a_metric_is_a_sum_and_of_two_objectives_their_mean() -> None:
    means = {DENSE: 0.75, SPARSE: 0.25}
    assert Metric.read(f"0.75*{DENSE}+0.25*{SPARSE}").values(means) == [0.75 * 0.75 + 0.25 * 0.25]
    assert Metric.read(f"{DENSE}+{DENSE}").value(means) == 1.5
    assert Metric.read(f"{DENSE},{SPARSE}").values(means) == [0.75, 0.25]
    assert Metric.read(f"{DENSE},{SPARSE}").value(means) == 0.5


@pytest.mark.parametrize("text", ["", "dense", "dense.accuracy", f"{DENSE}+", f"-1*{DENSE}", ",".join([DENSE] * 3)])
def test_what_is_no_metric_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"metric must be HEAD\.MEASURE"):
        Metric.read(text)
