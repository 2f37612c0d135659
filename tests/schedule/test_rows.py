"""How the rows of trials that pause stand, while the search runs and once its trials are over."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake import fake_rungs, new_agenda, open_agenda, open_study
from trainables.config import TrialConfig
from tuner.request.config import SearchConfig
from tuner.schedule.agenda import Agenda
from tuner.study.trials import how_they_ended

CONFIG = SearchConfig(
    num_trials=4, pruner="promotion", reduction_factor=2, rungs=(0.5, 1.0), finalists=0, search_space="m3"
)


def _train(agenda: Agenda, job: TrialConfig, values: dict[str, float]) -> None:
    """Trains a job to its end, or to the rung where it is stopped, with its own score in place of the reckoned one."""
    for report in fake_rungs(job):
        value = values.get(job.name, report.value)
        if not agenda.rung(job.name, replace(report, value=value)):
            break
    agenda.ended(job.name)


def _until_test(agenda: Agenda, values: dict[str, float]) -> None:
    while (job := agenda.next()) is not None and job.split != "test":
        _train(agenda, job, values)


def _sampled(agenda: Agenda) -> list[tuple[Any, ...]]:
    return [(row.name, row.state, row.rung) for row in agenda.shown if row.role == "sampled"]


def test_a_trial_that_may_go_on_is_paused_and_once_it_may_not_is_stopped(tmp_path: Path) -> None:
    """Trial 2 waits for a third at its rung, as 3 is better; in the table it stayed paused for ever."""
    study = open_study(CONFIG, tmp_path)
    agenda = new_agenda(CONFIG, study, tmp_path)
    for _ in range(4):
        job = agenda.next()
        assert job is not None
        _train(agenda, job, {"0002": 0.5, "0003": 0.6})
    assert _sampled(agenda) == [("0002", "paused", 1), ("0003", "complete", 2)]
    assert how_they_ended(study.search.trials) == "2 trained to the end, 0 stopped early, 1 paused, 0 failed"
    _until_test(agenda, {})
    assert _sampled(agenda) == [("0002", "pruned", 1), ("0003", "complete", 2)]
    assert how_they_ended(study.search.trials) == "2 trained to the end, 1 stopped early, 0 failed"


@pytest.mark.parametrize("resumed", [False, True])
def test_a_trial_that_is_promoted_has_one_row(resumed: bool, tmp_path: Path) -> None:
    """Trial 2 pauses before there is another, 3 is worse: 2 goes on. Beside the row that did it stood as paused."""
    agenda, values = open_agenda(CONFIG, tmp_path), {"0002": 0.6, "0003": 0.5}
    for _ in range(4):
        job = agenda.next()
        assert job is not None
        _train(agenda, job, values)
    if resumed:
        agenda = open_agenda(CONFIG, tmp_path)
    assert _sampled(agenda) == [("0002", "paused", 1), ("0003", "paused", 1)]
    promoted = agenda.next()
    assert promoted is not None
    assert _sampled(agenda) == [("0003", "paused", 1), ("0002", "running", 1)]
    _train(agenda, promoted, values)
    _until_test(agenda, {})
    assert _sampled(agenda) == [("0003", "pruned", 1), ("0002", "complete", 2)]
