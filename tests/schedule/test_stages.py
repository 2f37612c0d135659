"""Each stage by itself: which jobs it has, when it is over, and what its jobs' ends mean to it."""

from pathlib import Path

import pytest

from tests.support.fake import METRIC, START, open_study
from trainables.config import RungReport, TrialConfig
from tuner.request.config import SearchConfig
from tuner.run_dir.mirror import Mirror
from tuner.run_dir.store import RunStore
from tuner.schedule.disk import TrialFolders
from tuner.schedule.jobs import Job, Jobs, TrialConfigs
from tuner.schedule.pool import CandidatePool
from tuner.schedule.retraining_stage import RetrainingStage
from tuner.schedule.retries import Failure
from tuner.schedule.scoring_stages import ScoringStage
from tuner.schedule.search_stage import SearchStage
from tuner.schedule.suggestions import Suggestions
from tuner.schedule.time_budget import TimeBudget
from tuner.schedule.weights import Weights
from tuner.study.study import SearchStudy, read_studies


class _Room:
    """What the stages of a search share, in a folder of its own."""

    def __init__(self, config: SearchConfig, run_dir: Path) -> None:
        self.config, self.run_dir = config, run_dir
        self.study: SearchStudy = open_study(config, run_dir)
        self.jobs = Jobs(lambda: 0.0)
        self.budget = TimeBudget(config, spent=0.0, told=lambda: self.study.trials, clock=lambda: 0.0)
        self.folders = TrialFolders(run_dir / "trials")
        mirror = Mirror(RunStore(str(run_dir), run_dir))
        self.weights = Weights(config, self.study, self.jobs, run_dir=run_dir, folders=self.folders, mirror=mirror)
        self.configs = TrialConfigs(search=config, run_dir=run_dir, arguments=START, eval_data="eval")
        self.pool = CandidatePool(config, self.study, run_dir=run_dir, eval_data="eval")

    def search(self) -> SearchStage:
        suggestions = Suggestions(
            self.config, self.study, jobs=self.jobs, budget=self.budget, folders=self.folders, weights=self.weights
        )
        return SearchStage(self.config, self.study, suggestions, configs=self.configs, jobs=self.jobs, pool=self.pool)

    def retraining(self) -> RetrainingStage:
        return RetrainingStage(
            self.config,
            self.study,
            configs=self.configs,
            jobs=self.jobs,
            budget=self.budget,
            weights=self.weights,
            pool=self.pool,
        )

    def begun(self, stage: SearchStage | RetrainingStage | ScoringStage) -> Job:
        job = stage.next_job()
        assert job is not None
        self.jobs.hand_out(job)
        return job

    def trained(self, stage: SearchStage | RetrainingStage, value: float) -> Job:
        """Hands out the next job of `stage` and takes in its end after one rung; its weights are there."""
        job = self.begun(stage)
        job.best = value
        assert stage.rung(job, _rung(value)) is True
        (Path(job.config.directory) / "checkpoint").mkdir(parents=True)
        stage.ended(self.jobs.end(job.config.name, "complete"))
        return job


def _rung(value: float) -> RungReport:
    return RungReport(
        rung=1, fraction=1.0, step=1, examples=8, loss=1.0, value=value, scores={METRIC: value}, last=True,
        seconds={"training": 2.0},
    )  # fmt: skip


@pytest.fixture
def room(tmp_path: Path) -> _Room:
    config = SearchConfig(num_trials=3, finalists=1, finalist_seeds=2, rungs=(1.0,), pruner="none")
    return _Room(config, tmp_path)


def test_the_search_is_over_when_all_of_its_jobs_have_ended(room: _Room) -> None:
    search = room.search()
    assert [room.trained(search, value).row.role for value in (0.5, 0.6)] == ["base", "user"]
    last = room.begun(search)
    assert search.next_job() is None
    assert search.close() is False
    search.rung(last, _rung(0.7))
    search.ended(room.jobs.end(last.config.name, "complete"))
    assert search.close() is True
    assert [trial.value for trial in read_studies(room.run_dir)[0].trials] == [0.5, 0.6, 0.7]


def test_a_search_of_failures_alone_lets_no_stage_follow(room: _Room) -> None:
    search = room.search()
    room.trained(search, 0.5)
    for _ in range(2):
        job = room.jobs.end(room.begun(search).config.name, "failed")
        assert search.gave_up(job, Failure(kind="error", message="boom")) == ""
    assert search.next_job() is None
    assert search.close() is False
    assert [trial.state.name for trial in read_studies(room.run_dir)[0].trials] == ["COMPLETE", "FAIL", "FAIL"]


def test_a_job_that_is_to_be_tried_again_keeps_its_stage_open(room: _Room) -> None:
    search = room.search()
    base = room.jobs.end(room.begun(search).config.name, "failed")
    room.jobs.try_again(base, base.config)
    assert [job.config.name for job in room.jobs.of(search)] == ["0000"]
    again = room.jobs.next_attempt()
    assert again is not None
    assert again.row is not base.row
    assert room.jobs.next_attempt() is None
    assert room.jobs.of(search) == []


def test_the_best_trial_is_retrained_with_each_further_seed(room: _Room) -> None:
    search = room.search()
    for value in (0.5, 0.6, 0.7):
        room.trained(search, value)
    stage = room.retraining()
    first, second = room.begun(stage), room.begun(stage)
    assert [job.config.name for job in (first, second)] == ["0002-seed43", "0002-seed44"]
    assert [job.config.arguments["seed"] for job in (first, second)] == [43, 44]
    assert stage.next_job() is None
    assert stage.rung(first, _rung(0.1)) is True  # nothing stops it, however bad it is
    first.best = 0.1
    stage.ended(first)
    stage.gave_up(second, Failure(kind="error", message="boom"))
    told = read_studies(room.run_dir)[1].trials
    assert [(trial.state.name, trial.value) for trial in told] == [("COMPLETE", 0.1), ("FAIL", None)]
    assert told[0].user_attrs["seconds"] == {"training": 2.0}


def test_a_scoring_begins_when_everything_before_it_has_ended(room: _Room) -> None:
    """What it is to score follows from what those jobs found, so it is asked for once, and then."""
    asked = 0

    def find() -> list[TrialConfig]:
        nonlocal asked
        asked += 1
        return [room.configs.make(name, {}, split="test") for name in ("0000", "0001")]

    before = room.begun(room.search())
    stage = ScoringStage(find, jobs=room.jobs, is_needed=lambda job: job.name == "0000")
    assert stage.next_job() is None
    assert stage.close() is False
    assert asked == 0
    room.jobs.end(before.config.name, "complete")
    first, second = room.begun(stage), room.begun(stage)
    assert [(job.config.name, job.row.role, job.trial) for job in (first, second)] == [
        ("0000", "test", None), ("0001", "test", None)
    ]  # fmt: skip
    assert stage.next_job() is None
    assert stage.close() is False
    for job in (first, second):
        room.jobs.end(job.config.name, "complete")
    assert stage.next_job() is None
    assert stage.close() is True
    assert asked == 1
    failure = Failure(kind="error", message="boom")
    assert stage.gave_up(first, failure) == "the base model could not be scored on test: boom"
    assert stage.gave_up(second, failure) == ""
