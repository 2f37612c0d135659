"""Suggestions that repeat: trained once, also where both are suggested while the first one runs."""

from pathlib import Path

import optuna
import pytest

from tests.support.fake import START, fake_rungs, fake_train, new_agenda, open_study
from trainables.config import TrialConfig
from tuner.cluster.executor import run_in_process
from tuner.request.config import SearchConfig
from tuner.schedule.agenda import Agenda
from tuner.schedule.retries import Failure
from tuner.study.study import read_studies

CONFIG = SearchConfig(num_trials=5, finalists=0, pruner="none", concurrent_trials=2)


@pytest.fixture
def agenda(tmp_path: Path) -> Agenda:
    """Trial 2 is near the user's own settings, and trials 3 and 4 are alike."""
    study = open_study(CONFIG, tmp_path)
    for rate in (1.5 * START["learning_rate"], 2e-5, 2e-5):
        study.search.enqueue_trial({**START, "learning_rate": rate})
    return new_agenda(CONFIG, study, tmp_path)


def _end(agenda: Agenda, job: TrialConfig | None) -> None:
    assert job is not None
    for rung in fake_rungs(job):
        agenda.rung(job.name, rung)
    agenda.ended(job.name)


def _told(run_dir: Path) -> list[optuna.trial.FrozenTrial]:
    return read_studies(run_dir)[0].trials


def test_a_duplicate_of_a_finished_trial_gets_its_scores(agenda: Agenda, tmp_path: Path) -> None:
    run_in_process(agenda, fake_train)
    *_, third, fourth = _told(tmp_path)
    assert fourth.user_attrs["duplicate_of"] == third.number
    assert (fourth.value, fourth.state, fourth.user_attrs["scores"]) == (
        third.value,
        third.state,
        third.user_attrs["scores"],
    )
    assert not (tmp_path / "trials" / "0004").exists()
    assert [row.state for row in agenda.rows if row.name == "0004"] == ["as 3"]


def test_a_duplicate_of_a_running_trial_waits_for_it(agenda: Agenda, tmp_path: Path) -> None:
    for _ in range(3):  # base, user and trial 2
        _end(agenda, agenda.next())
    third = agenda.next()
    assert third is not None
    assert third.name == "0003"
    assert agenda.next() is None
    assert not agenda.finished
    _end(agenda, third)
    assert agenda.next() is None or not agenda.finished
    assert _told(tmp_path)[4].user_attrs["duplicate_of"] == 3


def test_a_duplicate_of_a_running_trial_that_diverges_diverges_too(agenda: Agenda, tmp_path: Path) -> None:
    for _ in range(3):
        _end(agenda, agenda.next())
    third = agenda.next()
    assert third is not None
    assert agenda.next() is None
    agenda.failed(third.name, Failure(kind="non_finite", message="NonFiniteLoss: again it would be"))
    final = agenda.next()
    assert final is not None
    assert (final.name, final.split) == ("0000", "test")  # nothing is left to train
    assert [trial.state.name for trial in _told(tmp_path)[3:]] == ["PRUNED", "PRUNED"]
    assert _told(tmp_path)[4].user_attrs["duplicate_of"] == 3


def test_a_duplicate_of_a_running_trial_that_fails_is_trained(agenda: Agenda, tmp_path: Path) -> None:
    for _ in range(3):
        _end(agenda, agenda.next())
    third = agenda.next()
    assert third is not None
    assert agenda.next() is None
    for _ in range(2):
        agenda.failed(third.name, Failure(kind="error", message="ValueError: twice"))
        fourth = agenda.next()
    assert fourth is not None
    assert fourth.name == "0004"
    _end(agenda, fourth)
    assert [trial.state.name for trial in _told(tmp_path)[3:]] == ["FAIL", "COMPLETE"]


def test_a_duplicate_of_a_paused_trial_waits_for_its_end(tmp_path: Path) -> None:
    """Trial 3 is worse than trial 2 at its first rung, and pauses there for good."""
    config = CONFIG.replace(pruner="promotion")
    study = open_study(config, tmp_path)
    for rate in (1.5 * START["learning_rate"], 2e-4, 2e-4):
        study.search.enqueue_trial({**START, "learning_rate": rate})
    agenda = new_agenda(config, study, tmp_path)
    run_in_process(agenda, fake_train)
    _, _, second, third, fourth = _told(tmp_path)
    assert (second.state.name, third.state.name, max(third.intermediate_values)) == ("COMPLETE", "PRUNED", 1)
    assert fourth.user_attrs["duplicate_of"] == third.number
    assert not (tmp_path / "trials" / "0004").exists()
    assert agenda.finished
