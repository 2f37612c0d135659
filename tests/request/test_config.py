from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuner.errors import RequestError
from tuner.request.command_line import parse
from tuner.request.config import SearchConfig


def test_defaults_are_sound() -> None:
    assert SearchConfig().problems() == []


def test_all_broken_rules_are_told_together() -> None:
    with pytest.raises(ValueError) as caught:
        SearchConfig(num_trials=1, rungs=(0.5, 0.2), metric="dense.accuracy", arguments={"fp16": True, "bf16": True})
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert any("but got 'dense.accuracy'" in line for line in lines)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90", 90),
        (5400, 5400),
        ("90m", 5400),
        ("8h", 28800),
        ("1.5d", 129600),
        ("1h30m", 5400),
        ("1H 30M", 5400),
        ("2d", 172800),
        ("1 day 12 hours", 129600),
        ("45min 10secs", 2710),
        (timedelta(hours=1, minutes=30), 5400),
    ],
)
def test_a_time_is_read_as_people_write_it_in_every_door(written: Any, seconds: float, tmp_path: Path) -> None:
    assert SearchConfig(time_budget=written).time_budget_seconds == seconds
    if not isinstance(written, timedelta):
        (tmp_path / "search.yaml").write_text(yaml.safe_dump({"train_data": "a.jsonl", "time_budget": written}))
        assert parse(["--config", str(tmp_path / "search.yaml")]).time_budget_seconds == seconds
        assert parse(["--time_budget", str(written)]).time_budget_seconds == seconds
        timeout = parse(["--train_data", "a.jsonl", "--ddp_timeout", str(written)]).arguments["ddp_timeout"]
        assert (timeout, type(timeout)) == (seconds, int)


@pytest.mark.parametrize(
    "written", ["30m1h", "1h 1h", "", "h", "8 fortnights", "1.2.3h", True, [], "0m", "-1h", "1e400"]
)
def test_a_time_that_is_none_is_refused(written: Any) -> None:
    with pytest.raises(RequestError, match=r"--time_budget: must be .* as 90m.* but got"):
        SearchConfig(time_budget=written)


@pytest.mark.parametrize("written", ["0.25,0.5,1.0", "0.25 0.5 1.0", ["0.25", "0.5", 1], ["0.25,0.5", "1.0"]])
def test_rungs_may_be_written_in_any_way(written: Any) -> None:
    assert SearchConfig(rungs=written).rungs == (0.25, 0.5, 1.0)
    assert parse(["--rungs", *map(str, written if isinstance(written, list) else [written])]).rungs == (0.25, 0.5, 1.0)


@pytest.mark.parametrize(
    ("metric", "meant"),
    [("dense.ndgc_at_10", "dense.ndcg_at_10"), ("0.5*dense.ndcg_at_10+0.5*sparse.mrr_10", "sparse.mrr_at_10")],
)
def test_a_misspelt_measure_is_told_with_the_nearest_one(metric: str, meant: str) -> None:
    with pytest.raises(RequestError, match=f"did you mean {meant}"):
        SearchConfig(metric=metric)


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
