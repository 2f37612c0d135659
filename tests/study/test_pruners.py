"""Who goes on at a rung: by rank, at once or after a pause."""

from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from optuna.trial import Trial, TrialState

from tests.support.fake import METRIC, fake_train, open_agenda, open_study
from trainables.config import RungReport
from trainables.scoring.measures import packed, unpacked
from tuner.cluster.executor import run_in_process
from tuner.request.config import SearchConfig
from tuner.study.pruners import HalvingPruner, PausedTrials, PausingPruner
from tuner.study.stopping import distinguishable, no_longer_pays
from tuner.study.study import SearchStudy
from tuner.study.trials import PAUSED, QUERIES, is_paused


def _at_first_rung(values: Sequence[float]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for value in values:
        study.ask().report(value, 1)
    return study


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ((0.5,), False),
        ((0.5, 0.4), True),  # of few, the best alone
        ((0.5, 0.6), False),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.7), False),  # 2 of 8
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.8, 0.6), True),
    ],
)
def test_one_of_four_goes_on_at_any_rung(values: Sequence[float], stops: bool) -> None:
    study = _at_first_rung(values)
    pruner = HalvingPruner(4)
    assert pruner.prune(study, study.trials[-1]) is stops


def test_the_users_own_settings_are_no_rival() -> None:
    """They train to their end whatever they score, as what is found is compared with them."""
    study = _at_first_rung([0.9, 0.5])
    assert HalvingPruner(4).prune(study, study.trials[-1])
    study._storage.set_trial_user_attr(study.trials[0]._trial_id, "role", "user")
    assert not HalvingPruner(4).prune(study, study.trials[-1])


def test_a_pausing_pruner_waits_for_the_fourth() -> None:
    study = _at_first_rung([0.9, 0.5, 0.4])
    pruner = PausingPruner(4)
    first = study.trials[0]
    assert pruner.prune(study, first)
    study.ask().report(0.6, 1)
    assert not pruner.prune(study, study.trials[0])
    assert pruner.promotes(study, first, least=0)
    assert not pruner.promotes(study, study.trials[1], least=1)


def test_packed_queries_are_short_and_exact_to_three_digits() -> None:
    values = [0.0, 1.0, 0.6309, 0.5] * 250
    assert len(packed(values)) < len(values)
    assert unpacked(packed(values)) == pytest.approx(values, abs=1e-3)


# Pausing, through the agenda


def _search(folder: Path, trials: int) -> SearchStudy:
    config = SearchConfig(num_trials=trials, pruner="promotion", reduction_factor=4, finalists=0)
    run_in_process(open_agenda(config, folder), fake_train)
    return open_study(config, folder)


def test_paused_trials_go_on_once_they_are_among_the_best_and_none_is_left_waiting(tmp_path: Path) -> None:
    """16 sampled trials: 4 come to the second rung and 1 to the end, more where a late one was better."""
    study = _search(tmp_path, 18)
    sampled = study.search.trials[2:]
    reached = [max(trial.intermediate_values) for trial in sampled]
    assert not any(is_paused(trial) or trial.state == TrialState.RUNNING for trial in sampled)
    assert 4 <= sum(rung >= 2 for rung in reached) <= 8
    assert 1 <= sum(trial.state == TrialState.COMPLETE for trial in sampled) <= 3
    best = max(sampled, key=lambda trial: trial.intermediate_values[1])
    assert best.state == TrialState.COMPLETE


def test_a_paused_trial_is_no_unfinished_one_and_a_promoted_one_is(tmp_path: Path) -> None:
    config = SearchConfig(num_trials=9, pruner="promotion", reduction_factor=2)
    study = open_study(config, tmp_path)
    study.ask(), study.ask()
    for value in (0.5, 0.6):
        trial, _ = study.ask()
        assert study.tell.report(trial, _rung(value)) is (value == 0.6)
        if value == 0.5:
            assert study.tell.stopped(trial)
    again = open_study(config, tmp_path)
    assert [trial.number for trial in again.paused.all] == [2]
    assert again.paused.promote(closing=False) is None
    promoted = again.paused.promote(closing=True)
    assert promoted is None  # 3 is at the same rung, and better
    assert {"0002"}.isdisjoint(again.unfinished_names)


def _rung(value: float) -> RungReport:
    return RungReport(
        rung=1, fraction=0.25, step=1, examples=1, loss=1.0, value=value, scores={METRIC: value}, last=False
    )


# Patience


def _told(values: Sequence[float], noise: float) -> optuna.Study:
    """Complete trials of two queries, whose differences have the standard deviation `noise`."""
    study = optuna.create_study(direction="maximize")
    for number, value in enumerate(values):
        trial = study.ask()
        spread = noise / 2 if number % 2 else -noise / 2
        trial.set_user_attr(f"{QUERIES}_1", packed([value + spread, value - spread]))
        trial.report(value, 1)
        study.tell(trial, value)
    return study


def test_a_search_ends_when_what_is_to_come_is_less_than_dev_can_tell_apart() -> None:
    """The last 2 trials added 0.02, so 10 more are expected to add 0.1; dev tells 0.2 apart, or 0.02."""
    values = [0.5, 0.6, 0.61, 0.62]
    noisy, quiet = _told(values, 0.2).trials, _told(values, 0.02).trials
    assert distinguishable(noisy) == pytest.approx(0.2, abs=2e-3)
    assert "expected to add 0.1000" in no_longer_pays(noisy, left=10, patience=2)
    assert no_longer_pays(quiet, left=10, patience=2) == ""
    assert no_longer_pays(noisy, left=10, patience=5) == ""  # too few to tell
    assert no_longer_pays(noisy, left=0, patience=2) == ""


def test_what_a_trial_adds_counts_when_it_comes_to_its_end() -> None:
    """Trial 1 begins before trial 2, and ends after it, with the best score: it is no old news."""
    study = _told([0.5], 0.2)
    late = study.ask()
    for value, packing in ((0.49, [0.4, 0.58]), (0.48, [0.39, 0.57])):
        trial = study.ask()
        trial.set_user_attr(f"{QUERIES}_1", packed(packing))
        trial.report(value, 1)
        study.tell(trial, value)
    late.set_user_attr(f"{QUERIES}_1", packed([1.0, 0.4]))
    late.report(0.7, 1)
    assert "rose by 0.0000" in no_longer_pays(study.trials, left=1, patience=2)
    late.set_user_attr(PAUSED, 1)
    assert no_longer_pays(study.trials, left=1, patience=2) == ""  # 0.7 may be reached: 0.1 a trial are expected
    study.tell(late, 0.7)
    assert "rose by 0.2000" in no_longer_pays(study.trials, left=1, patience=2)


def test_a_trial_that_failed_keeps_nobody_from_going_on() -> None:
    study = _at_first_rung([0.8, 0.7])
    study.sampler, study.pruner = optuna.samplers.RandomSampler(), PausingPruner(2)
    for trial in study.trials:
        Trial(study, trial._trial_id).set_user_attr(PAUSED, 1)
    paused = PausedTrials(study)
    best = paused.promote(closing=True)
    assert best is not None
    assert best[0].number == 0
    assert paused.promote(closing=True) is None
    study.tell(best[0], state=TrialState.FAIL)
    other = paused.promote(closing=True)
    assert other is not None
    assert other[0].number == 1
