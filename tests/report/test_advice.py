"""What a report says is to be tried next."""

import dataclasses

import pytest

from tests.support.live_fixtures import BASE, standing
from tests.support.report_fixtures import build_run
from tuner.report.advice import advice
from tuner.report.standings import Standing
from tuner.verdict.result import RangeEnd, Verdict

RUNGS = (0.25, 0.5, 1.0)
SOUND = {"negatives_per_row": {"median": 7}, "has_scores": True, "warnings": []}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    found = Verdict.read(build_run(tmp_path_factory.mktemp("advice") / "run", queries=60, gain=0.002, seeds=1))
    assert found is not None
    assert found.best is not None
    assert found.verdict == "keep the base model"
    return dataclasses.replace(found, best=dataclasses.replace(found.best, trial=2))


def _advice(result: Verdict, *trials: Standing, **manifest: object) -> str:
    return "\n".join(advice(result, [BASE, *trials], RUNGS, SOUND | manifest))


def test_training_that_harms_wants_lower_learning_rates(kept: Verdict) -> None:
    worse = [standing(number, "complete", 0.5, 0.55, 0.6) for number in (1, 2)]
    said = _advice(kept, *worse)
    assert said.startswith("Every trained trial scores below the base model on dev: training did harm.")
    assert "Tried were 1.1e-05 to 1.2e-05." in said


def test_a_curve_that_rises_or_falls_says_how_long_to_train(kept: Verdict) -> None:
    assert "still rising at its last rung" in _advice(kept, standing(2, "complete", 0.69, 0.70, 0.71))
    assert "best at its first rung, after 25% of its training" in _advice(kept, standing(2, "complete", 0.71, 0.7, 0.6))


def test_an_end_of_a_range_is_told_where_fine_tuning_won_too(kept: Verdict) -> None:
    end = RangeEnd(name="learning_rate", value=5e-5, end="largest", limit=5e-5)
    won = dataclasses.replace(kept, verdict="fine-tune", range_ends=[end])
    found = advice(won, [BASE, standing(2, "complete", 0.69, 0.71)], RUNGS, SOUND)
    assert found == ["The best learning_rate is the largest allowed (5e-05): widen it."]


def test_data_that_lacks_something_is_told(kept: Verdict) -> None:
    assert "few negatives" in _advice(kept, negatives_per_row={"median": 1})
    assert "no teacher's scores" in _advice(kept, has_scores=False)
    assert "Mend what the data check found" in _advice(kept, warnings=["rows.jsonl:3: twice"])


def test_more_test_queries_are_told_by_number(kept: Verdict) -> None:
    assert kept.best is not None
    best = dataclasses.replace(kept.best, gain=0.02, detectable=0.04, queries=400)
    said = _advice(dataclasses.replace(kept, best=best))
    assert "+0.0200, is detected in 8 of 10 cases with about 1,600 test queries; there are 400" in said  # (0.04/0.02)^2


def test_a_failed_trial_is_named(kept: Verdict) -> None:
    assert "Trial 3 failed" in _advice(kept, standing(3, "failed"))
