"""What the terminal advises where the base model is kept."""

import dataclasses
from pathlib import Path

import pytest

from tests.support.report_fixtures import build_run
from tuner.search.next_steps import next_steps
from tuner.verdict.result import Verdict


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    found = Verdict.read(build_run(tmp_path_factory.mktemp("kept") / "run", gain=0.001))
    assert found is not None
    return found


def test_a_gain_that_may_be_chance_wants_more_queries_and_more_trials(kept: Verdict) -> None:
    steps = list(next_steps(kept, "runs/1", planned=12))
    assert "more test queries (--eval_data)" in steps[0]
    assert steps[1] == "look further: python -m tuner.search --resume runs/1 --num_trials 24"
    cut_short = list(next_steps(kept, "runs/1", planned=16))
    assert (
        cut_short[1]
        == "look further: python -m tuner.search --resume runs/1 --time_budget LONGER (12 of 16 trials ran)"
    )


def test_a_search_that_patience_ended_wants_more_patience(kept: Verdict) -> None:
    steps = list(next_steps(kept, "runs/1", planned=16, by_patience=True))
    ended = "(12 of 16 trials ran, then --patience ended the search)"
    assert steps[1] == f"look further: python -m tuner.search --resume runs/1 --patience 16 {ended}"


def test_a_directory_is_named_as_a_shell_takes_it(kept: Verdict) -> None:
    assert "--resume 'runs/exp?a' --num_trials" in list(next_steps(kept, "runs/exp?a", planned=12))[1]


def test_a_loss_wants_lower_learning_rates(kept: Verdict) -> None:
    assert kept.best is not None
    worse = dataclasses.replace(kept, best=dataclasses.replace(kept.best, ci95=(-0.2, -0.1)))
    assert "lower learning rates" in next(iter(next_steps(worse, "runs/1", planned=12)))


def test_what_is_forgotten_comes_first(tmp_path: Path) -> None:
    found = Verdict.read(build_run(tmp_path / "run", guarded=True))
    assert found is not None
    assert found.verdict == "keep the base model"
    assert [step.partition(":")[0] for step in next_steps(found, "runs/1", planned=12)] == ["forget less"]


def test_where_fine_tuning_is_recommended_nothing_is_advised(tmp_path: Path) -> None:
    found = Verdict.read(build_run(tmp_path / "run"))
    assert found is not None
    assert list(next_steps(found, "runs/1", planned=12)) == []


def test_with_hardly_any_test_queries_more_of_them_come_before_anything_else(kept: Verdict) -> None:
    assert kept.best is not None
    few = dataclasses.replace(kept, best=dataclasses.replace(kept.best, queries=22))
    (step,) = next_steps(few, "runs/1", planned=12)
    assert step.startswith(
        "22 test queries are too few for any verdict: search anew, in another --run_dir, with more rows"
    )


def test_who_looks_at_test_again_is_told_so(kept: Verdict) -> None:
    assert list(next_steps(kept, "runs/1", planned=12))[2].startswith("test is looked at once more then")
