"""What an agenda starts within a time budget, and what it says of the rest."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fake import METRIC, PARETO, fake_train, open_agenda, open_study
from trainables.config import Progress, Report, RungReport, TrialConfig
from tuner.cluster import executor
from tuner.cluster.executor import run_in_process
from tuner.cluster.slot import Slots
from tuner.interrupts import Interrupted, SearchStopped
from tuner.request.config import SearchConfig
from tuner.search.conclusion import without_winner
from tuner.study.study import read_studies
from tuner.study.trials import rung_values


def test_no_trial_is_started_that_the_time_budget_cannot_hold(tmp_path: Path) -> None:
    now = 0.0

    def minute(config: TrialConfig, report: Report, progress: Progress) -> None:
        started = now

        def report_in_time(rung: RungReport) -> bool:
            nonlocal now
            now = started + 60 * rung.fraction
            return report(replace(rung, seconds={"training": now - started, "scoring": 0.0}))

        fake_train(config, report_in_time, progress)

    config = SearchConfig(num_trials=50, time_budget="10m", finalists=1, finalist_seeds=1, pruner="none")
    agenda = open_agenda(config, tmp_path, clock=lambda: now)
    run_in_process(agenda, minute)
    assert now <= 600
    assert [row.role for row in agenda.rows].count("finalist") == 1


def test_trials_that_the_time_budget_left_out_are_told(tmp_path: Path) -> None:
    """Scoring the base model takes 100 of 300 s: three more scorings for the test, and nothing is left to train in."""
    now = 0.0

    def slowly(config: TrialConfig, report: Report, progress: Progress) -> None:
        nonlocal now
        now += 100
        fake_train(config, lambda rung: report(replace(rung, seconds={"scoring": 100.0})), progress)

    agenda = open_agenda(SearchConfig(num_trials=5, time_budget="300"), tmp_path, clock=lambda: now)
    run_in_process(agenda, slowly)
    assert agenda.left_out == (
        "time budget: 1 of 5 trials were started: "
        "the next one, the finalists and the test need 300 s, and 200 s are left; raise --time_budget, to 440s or "
        "more; the 100 s that are used count"
    )
    stopped = without_winner(agenda)
    assert isinstance(stopped, SearchStopped)
    assert stopped.reason == agenda.left_out


def test_a_trial_of_two_objectives_that_has_no_time_for_its_next_rung_is_pruned(tmp_path: Path) -> None:
    """10 s are left at the first rung of trial 2: too few for 15 s up to the next one, and 3 x 6 s for the test."""
    now = 0.0

    def minute(config: TrialConfig, report: Report, progress: Progress) -> None:
        started = now

        def in_time(rung: RungReport) -> bool:
            nonlocal now
            now = started + (60 * rung.fraction if config.rungs else 6)
            if config.name == "0002":
                now = 190.0
            return report(replace(rung, seconds={"training": 0.0, "scoring": now - started}))

        fake_train(config, in_time, progress)

    config = SearchConfig(num_trials=4, time_budget="200", finalists=0, metric=f"{METRIC},{PARETO}")
    agenda = open_agenda(config.replace(rungs=(0.25, 0.5, 1.0)), tmp_path, clock=lambda: now)
    run_in_process(agenda, minute)
    trial = read_studies(tmp_path)[0].trials[2]
    assert trial.state.name == "PRUNED"
    assert rung_values(trial).keys() == {1}


def test_a_search_that_started_every_trial_left_out_nothing(tmp_path: Path) -> None:
    agenda = open_agenda(SearchConfig(num_trials=2, time_budget="8h", finalists=0), tmp_path)
    run_in_process(agenda, fake_train)
    assert agenda.left_out == ""


class _Killed(BaseException):
    pass


def _killed_in_the_fifth_trial(run_dir: Path, config: SearchConfig, rungs_reached: int) -> float:
    """Runs a search until it is killed in trial 4, and returns when; the study was told of that trial's first rung.

    Trainings take 60 s, rungs at a quarter and a half of it; the base model is scored in 6 s.
    """
    now = 0.0

    def minute(job: TrialConfig, report: Report, progress: Progress) -> None:
        started = now

        def in_time(rung: RungReport) -> bool:
            nonlocal now
            took = 60 * rung.fraction if job.rungs else 6
            now = started + took
            if job.name == "0004" and rung.rung == 2:
                (Path(job.directory) / "metrics.jsonl").write_text("{}\n" * rungs_reached)
                raise _Killed
            return report(replace(rung, seconds={"training": 0.0, "scoring": took}))

        fake_train(job, in_time, progress)

    with pytest.raises(_Killed):
        run_in_process(open_agenda(config, run_dir, clock=lambda: now), minute)
    return now


@pytest.mark.parametrize(("rungs_reached", "state"), [(1, "PRUNED"), (3, "COMPLETE")])
def test_a_resumed_search_starts_nothing_that_its_time_budget_cannot_hold(
    rungs_reached: int, state: str, tmp_path: Path
) -> None:
    """90 s are left, and 66 + 3 x 6 s are kept for a retraining and the test: too few for the 15 s of a next rung.

    A trial that is trained, and only has to say so, needs none.
    """
    config = SearchConfig(
        num_trials=9, time_budget="360", finalists=1, finalist_seeds=1, pruner="none", rungs=(0.25, 0.5, 1.0)
    )
    killed = _killed_in_the_fifth_trial(tmp_path, config, rungs_reached)
    study = open_study(config, tmp_path)
    assert study.spent == killed - 15  # at the rung before
    study.spent = 360 - 90
    agenda = open_agenda(config, tmp_path, clock=lambda: 0.0)
    run_in_process(agenda, fake_train)
    trials = read_studies(tmp_path)[0].trials
    assert trials[4].state.name == state
    assert len(trials) == 5
    assert [row.role for row in agenda.rows].count("finalist") == 1


def test_the_time_is_written_down_when_a_search_is_told_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Told:
        def __init__(self, *_: object, **__: object) -> None: ...

        def fit(self) -> None:
            nonlocal now
            now = 25.0
            raise Interrupted(130)

    for name in ("with_parameters", "with_resources"):
        monkeypatch.setattr(f"tuner.cluster.executor.tune.{name}", lambda *_, **__: None)
    monkeypatch.setattr("tuner.cluster.executor.tune.Tuner", Told)
    monkeypatch.setattr(executor, "_save_running", lambda _: None)
    monkeypatch.setattr(executor, "_beside_the_driver", lambda: None)  # it would start Ray
    slots = Slots(count=1, workers=1, cpus=1, gpus=0, folder=tmp_path)
    with pytest.raises(Interrupted):
        executor.run_on_ray(open_agenda(SearchConfig(), tmp_path, clock=lambda: now), slots)
    assert read_studies(tmp_path)[0].user_attrs["seconds"] == 25.0
