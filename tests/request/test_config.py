import pytest

from tuner.request.config import SearchConfig


def test_defaults_are_sound() -> None:
    assert SearchConfig().problems() == []


def test_all_broken_rules_are_told_together() -> None:
    with pytest.raises(ValueError) as caught:
        SearchConfig(num_trials=1, rungs=(0.5, 0.2), metric="dense.accuracy", arguments={"fp16": True, "bf16": True})
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert any("but got 'dense.accuracy'" in line for line in lines)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90m", 5400), ("8h", 28800), ("1.5d", 129600)])
def test_a_time_budget_is_read_with_its_unit(text: str, seconds: float) -> None:
    assert SearchConfig(time_budget=text).time_budget_seconds == seconds


def test_a_configuration_survives_its_file() -> None:
    config = SearchConfig(
        arguments={"train_data": ["a.jsonl"], "learning_rate": 1e-5}, rungs=(0.5, 1.0), num_trials=3, guard=("a",)
    )
    assert SearchConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "metric",
    [
        "hybrid.recall_at_100",
        "0.7*dense.ndcg_at_10 + 0.3*hybrid.ndcg_at_10",
        "dense.ndcg_at_10,sparse.ndcg_at_10",
        "dense.ndcg_at_10, .5*sparse.ndcg_at_10+1*colbert.ndcg_at_10",
    ],
)
def test_a_metric_may_be_a_weighted_sum_or_two_objectives(metric: str) -> None:
    assert len(SearchConfig(metric=metric).objective.names) == metric.count(",") + 1


@pytest.mark.parametrize(
    "metric", ["ndcg_at_10", "dense.ndcg_at_10+", "-1*dense.ndcg_at_10", ",".join(["dense.ndcg_at_10"] * 3)]
)
def test_other_metrics_are_refused(metric: str) -> None:
    with pytest.raises(ValueError, match="a weighted sum as"):
        SearchConfig(metric=metric)


def test_a_guard_constraint_needs_a_guard() -> None:
    with pytest.raises(ValueError, match="guard_constraint needs a guard"):
        SearchConfig(guard_constraint=True)
