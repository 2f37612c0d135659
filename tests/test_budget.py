"""Time budgets, with durations that can be added up by hand."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner.budget import TimeBudget
from tuner.config import SearchConfig
from tuner.jobs import Row

CONFIG = SearchConfig(time_budget="1000", finalists=2, finalist_seeds=2, concurrent_trials=2, rungs=(0.25, 0.5, 1.0))
"""4 retrainings on 2 slots: two rounds."""


def _row(role: str, started: float, ended: float | None, state: str = "complete", step: int = 0) -> Row:
    return Row(name="x", role=role, params={}, state=state, started=started, ended=ended, step=step, steps=100)


def _base() -> Row:
    row = _row("base", -25, 10)  # the workers took 25 s to start
    row.scoring = 10
    return row


ROWS = [_base(), _row("user", 10, 110), _row("sampled", 110, 160)]
"""Scoring takes 10 s, a whole training 100 s: the finalists and the test need 1.1 x 2 x 100 + 3 x 10 = 250 s."""


def _budget(now: float, spent: float = 0, told: Sequence[FrozenTrial] = ()) -> TimeBudget:
    times = iter([0.0])
    return TimeBudget(CONFIG, spent=spent, told=lambda: told, clock=lambda: next(times, now))


def _told(role: str, state: TrialState, training: float, **rungs: float) -> FrozenTrial:
    """A trial as the study has it: 10 s of scoring, and 5 s of neither."""
    return create_trial(
        state=state,
        value=0.6 if state == TrialState.COMPLETE else None,
        intermediate_values={int(rung.removeprefix("rung")): value for rung, value in rungs.items()},
        user_attrs={"role": role, "seconds": {"training": training, "scoring": 10.0, "overhead": 5.0}},
    )


def test_a_trial_starts_while_its_first_rung_and_the_finalists_have_time() -> None:
    """25 s to the first rung and 250 s: up to 725 s."""
    assert _budget(724).allows_trial(ROWS)
    assert not _budget(726).allows_trial(ROWS)


def test_a_trial_goes_on_while_its_next_rung_and_the_finalists_have_time() -> None:
    """25 s from the first rung to the second, 50 s to the third."""
    assert _budget(724).allows_next_rung(1, ROWS)
    assert not _budget(726).allows_next_rung(1, ROWS)
    assert not _budget(724).allows_next_rung(2, ROWS)
    assert _budget(699).allows_next_rung(2, ROWS)


def test_a_finalist_is_retrained_while_the_test_has_time() -> None:
    assert _budget(869).allows_retraining(ROWS)
    assert not _budget(871).allows_retraining(ROWS)


def test_a_running_trial_tells_how_long_a_training_takes() -> None:
    """At step 20 of 100 after 60 s, a whole one takes 300 s: 75 to the first rung and 660 for the finalists."""
    rows = [_row("user", 240, None, state="running", step=20)]
    assert not _budget(300).allows_trial(rows)
    assert _budget(260).allows_trial([_row("user", 200, None, state="running", step=20)])


def test_time_spent_before_a_resume_counts() -> None:
    assert not _budget(300, spent=500).allows_trial(ROWS)
    assert _budget(300, spent=500).spent == 800


def test_what_earlier_processes_took_counts() -> None:
    """Of the base model its scoring alone; a whole training took 85 + 10 + 5 s: as in `ROWS`, up to 725 s."""
    told = [_told("base", TrialState.COMPLETE, 500), _told("user", TrialState.COMPLETE, 85)]
    assert _budget(24, spent=700, told=told).allows_trial([])
    assert not _budget(26, spent=700, told=told).allows_trial([])


def test_a_trial_that_an_earlier_process_did_not_end_tells_how_long_a_training_takes() -> None:
    """35 + 10 + 5 s to the second rung, half of the training."""
    told = [_told("base", TrialState.COMPLETE, 0), _told("user", TrialState.RUNNING, 35, rung1=0.5, rung2=0.6)]
    assert _budget(724, told=told).allows_trial([])
    assert not _budget(726, told=told).allows_trial([])


def test_a_trained_trial_needs_no_time() -> None:
    assert _budget(999).allows_next_rung(3, ROWS)


def test_without_a_budget_everything_may_start() -> None:
    budget = TimeBudget(SearchConfig(), spent=1e9, told=list, clock=lambda: 1e9)
    assert budget.allows_trial(ROWS)
    assert budget.allows_next_rung(1, ROWS)
    assert budget.allows_retraining(ROWS)
