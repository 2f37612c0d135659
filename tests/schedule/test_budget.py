"""Time budgets, with durations that can be added up by hand."""

from collections.abc import Sequence
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner.request.config import SearchConfig
from tuner.schedule.jobs import Row
from tuner.schedule.time_budget import TimeBudget, final_scorings

CONFIG = SearchConfig(
    time_budget="1000", finalists=2, finalist_seeds=2, concurrent_trials=2, rungs=(0.25, 0.5, 1.0), pruner="none"
)
"""4 retrainings on 2 slots: two rounds."""


def _running(first_step: tuple[float, int] | None, step: int, steps: int) -> Row:
    return Row(name="x", role="user", params={}, started=0, first_step=first_step, step=step, steps=steps)


def _told(role: str, state: TrialState, training: float, **rungs: float) -> FrozenTrial:
    """A trial as the study has it: 10 s of scoring, and 5 s of neither."""
    return create_trial(
        state=state,
        value=0.6 if state == TrialState.COMPLETE else None,
        intermediate_values={int(rung.removeprefix("rung")): value for rung, value in rungs.items()},
        user_attrs={"role": role, "seconds": {"training": training, "scoring": 10.0, "overhead": 5.0}},
    )


TOLD = [_told("base", TrialState.COMPLETE, 500), _told("user", TrialState.COMPLETE, 85)]
"""Scoring takes 10 s, a whole training 100 s: the finalists and the test need 1.1 x 2 x 100 + 3 x 10 = 250 s.

Of the base model only the scoring counts.
"""


def _budget(
    now: float, spent: float = 0, told: Sequence[FrozenTrial] = (), config: SearchConfig = CONFIG
) -> TimeBudget:
    times = iter([0.0])
    return TimeBudget(config, spent=spent, told=lambda: told, clock=lambda: next(times, now))


@pytest.mark.parametrize(
    ("asked", "scorings"),
    [
        ({}, 3),
        ({"arguments": {"unified_finetuning": True}}, 9),
        ({"guard": ("news", "law")}, 3 + 4 * 2 + 3 * 3),
    ],
)
def test_what_is_scored_at_the_end_is_counted(asked: dict[str, Any], scorings: int) -> None:
    """Two guards: on the base model, two finalists and the mixture chosen; three mixtures on them and dev."""
    assert final_scorings(CONFIG.replace(**asked)) == scorings


def test_a_trial_starts_while_its_first_rung_and_the_finalists_have_time() -> None:
    """25 s to the first rung and 250 s: up to 725 s."""
    assert _budget(724, told=TOLD).allows_trial([])
    assert not _budget(726, told=TOLD).allows_trial([])


def test_while_every_sampled_trial_is_paused_time_is_kept_for_the_best_of_them_to_end() -> None:
    """Another 100 s, until one has come to its end."""
    config = CONFIG.replace(pruner="promotion")
    assert _budget(624, told=TOLD, config=config).allows_trial([])
    assert not _budget(626, told=TOLD, config=config).allows_trial([])
    ended = [*TOLD, _told("sampled", TrialState.COMPLETE, 85)]
    assert _budget(724, told=ended, config=config).allows_trial([])


def test_why_no_trial_may_start_is_said_in_seconds() -> None:
    """25 s to the first rung and 250 s."""
    said = "the next one, the finalists and the test need 275 s, and 200 s are left"
    assert _budget(800, told=TOLD).shortage([]) == said
    assert "and 0 s are left" in _budget(1100, told=TOLD).shortage([])


def test_a_trial_goes_on_while_its_next_rung_and_the_finalists_have_time() -> None:
    """25 s from the first rung to the second, 50 s to the third."""
    assert _budget(724, told=TOLD).allows_next_rung(1, [])
    assert not _budget(726, told=TOLD).allows_next_rung(1, [])
    assert not _budget(724, told=TOLD).allows_next_rung(2, [])
    assert _budget(699, told=TOLD).allows_next_rung(2, [])


def test_a_finalist_is_retrained_while_the_test_has_time() -> None:
    assert _budget(869, told=TOLD).allows_retraining([])
    assert not _budget(871, told=TOLD).allows_retraining([])


def test_a_running_trial_tells_how_long_a_training_takes() -> None:
    """20 of 100 steps in 60 s, a whole one takes 300 s: 75 to the first rung and 660 for the finalists."""
    assert not _budget(300).allows_trial([_running((240, 1), step=21, steps=100)])
    assert _budget(260).allows_trial([_running((200, 1), step=21, steps=100)])


def test_a_trial_that_is_taken_up_again_tells_the_pace_of_the_steps_it_did_since() -> None:
    """From step 80 to 90 of 100 in 30 s, a whole one takes 300 s, as above."""
    assert not _budget(300).allows_trial([_running((270, 80), step=90, steps=100)])
    assert _budget(260).allows_trial([_running((230, 80), step=90, steps=100)])


def test_a_trial_that_has_just_begun_tells_nothing() -> None:
    """8 h, of which 24,800 s are left: 0.5 x 4,000 to the next rung and 1.1 x 4,000 + 3 x 10 s for the finalist.

    By the other slot's second step, 10 s after its first, 2,000 would take 20,000 s, and all of it 32,030 s.
    """
    config = CONFIG.replace(time_budget="8h", finalists=1, finalist_seeds=1)
    told = [TOLD[0], _told("user", TrialState.COMPLETE, 3985)]
    budget = _budget(4000, told=told, config=config)
    assert budget.left == 24_800
    assert budget.allows_next_rung(2, [_running((3990, 1), step=1, steps=2000)])
    assert budget.allows_next_rung(2, [_running((3990, 1), step=2, steps=2000)])
    assert budget.allows_next_rung(2, [_running(None, step=0, steps=0)])


def test_time_spent_before_a_resume_counts() -> None:
    assert not _budget(300, spent=500, told=TOLD).allows_trial([])
    assert _budget(300, spent=500).spent == 800


def test_what_earlier_processes_took_counts() -> None:
    assert _budget(24, spent=700, told=TOLD).allows_trial([])
    assert not _budget(26, spent=700, told=TOLD).allows_trial([])


def test_a_trial_that_an_earlier_process_did_not_end_tells_how_long_a_training_takes() -> None:
    """35 + 10 + 5 s to the second rung, half of the training."""
    told = [_told("base", TrialState.COMPLETE, 0), _told("user", TrialState.RUNNING, 35, rung1=0.5, rung2=0.6)]
    assert _budget(724, told=told).allows_trial([])
    assert not _budget(726, told=told).allows_trial([])


def test_a_trained_trial_needs_no_time() -> None:
    assert _budget(999, told=TOLD).allows_next_rung(3, [])


def test_without_a_budget_everything_may_start() -> None:
    budget = TimeBudget(SearchConfig(), spent=1e9, told=lambda: TOLD, clock=lambda: 1e9)
    assert budget.allows_trial([])
    assert budget.allows_next_rung(1, [])
    assert budget.allows_retraining([])
