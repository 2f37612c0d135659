"""What runs next, and what becomes of it: search, then finalists, then the test set.

The agenda is the driver's side of a search without any Ray in it. An executor asks it for jobs and tells it what came
of them; it asks its stages, and tells each what came of its own. Whatever must outlive the process is in the study.
"""

import time
from collections.abc import Callable
from dataclasses import replace

from optuna.trial import TrialState

from trainables.config import RungReport, TrialConfig
from trainables.tally import Position
from tuner.interrupts import SearchStopped
from tuner.run_dir.mirror import Mirror
from tuner.run_dir.names import TRIALS
from tuner.run_dir.store import RunStore
from tuner.schedule.disk import TrialFolders
from tuner.schedule.jobs import Job, Jobs, Row, Stage, TrialConfigs, earlier_rows, standing_rows
from tuner.schedule.pool import CandidatePool
from tuner.schedule.retraining_stage import RetrainingStage
from tuner.schedule.retries import Failure, Outage, Retries
from tuner.schedule.scoring_stages import Scorings
from tuner.schedule.search_stage import WITHOUT_BASE, SearchStage
from tuner.schedule.suggestions import Suggestions
from tuner.schedule.time_budget import TimeBudget
from tuner.schedule.time_left import time_left
from tuner.schedule.weights import Weights
from tuner.study.study import SearchStudy
from tuner.study.trials import ERROR, ERROR_KIND, retried


class Agenda:
    """Hands out jobs and takes in their rungs and ends.

    Args:
        study: The search's trials.
        configs: Makes the jobs' configurations: what the search is, and where.
        trial_bytes: What a trial may write while it runs.
        mirror: Keeps object storage up to date. None: the run directory is where it is to be.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        study: SearchStudy,
        configs: TrialConfigs,
        *,
        trial_bytes: int = 0,
        mirror: Mirror | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        config, run_dir = configs.search, configs.run_dir
        self._config, self._clock = config, clock
        self._study, self._mirror = study, mirror or Mirror(RunStore(str(run_dir), run_dir))
        self._budget = TimeBudget(
            config, spent=study.spent, told=lambda: study.trials, clock=clock, pooled=lambda: bool(study.pool)
        )
        self._folders = TrialFolders(
            run_dir / TRIALS, trial_bytes=trial_bytes, budget=config.disk_budget_bytes, clock=clock
        )
        self._outage, self._retries, self._jobs = Outage(clock), Retries(), Jobs(clock)
        self._weights = Weights(config, study, self._jobs, run_dir=run_dir, folders=self._folders, mirror=self._mirror)
        self._suggestions = Suggestions(
            config, study, jobs=self._jobs, budget=self._budget, folders=self._folders, weights=self._weights
        )
        pool = CandidatePool(config, study, run_dir=run_dir, eval_data=configs.eval_data)
        self._search = SearchStage(config, study, self._suggestions, configs=configs, jobs=self._jobs, pool=pool)
        retrainings = RetrainingStage(
            config, study, configs=configs, jobs=self._jobs, budget=self._budget, weights=self._weights, pool=pool
        )
        scorings = Scorings(config, study, configs=configs).stages(self._jobs)
        self._stages: list[Stage] = [self._search, retrainings, *scorings]
        self._stop_reason = self._unscored = ""
        self.note = ""
        """Why no job is handed out."""
        self.earlier = earlier_rows(study.trials, config)
        """What earlier processes of the search have done."""
        self.rows = self._jobs.rows
        self.failures: list[Failure] = []
        self.finished = False

    def next(self) -> TrialConfig | None:
        """Returns the next job, or None when there is none now: wait for a running one, or `finished`.

        Raises:
            SearchStopped: No machine has a place for a worker group, the disk was full for long, or storage away; or
                the base model or the winner could not be scored on test.
        """
        running = len(self._jobs.running)
        if self._stop_reason or (self._unscored and not running):
            raise SearchStopped(self._stop_reason or self._unscored)
        if self._unscored:
            return None
        self.note = self._outage.pause(running) or self._weights.shortage() or ""
        if self.note:
            return None
        job = self._next_job()
        if job is None:
            self.finished = not self._jobs.open and not self._search.has_twins
            return None
        job = replace(job, config=self._retries.known(job.config))
        self._jobs.hand_out(job)
        self._mirror.begun(job.config.name)
        try:
            self._folders.opened(job.config)
        except OSError as error:
            self.failed(job.config.name, Failure(kind="disk_full", message=f"{type(error).__name__}: {error}"))
            return None
        return job.config

    def _next_job(self) -> Job | None:
        """What is to be tried again goes first; then the first stage that is not over is asked."""
        if self._search.lacks_base:
            while job := self._jobs.next_attempt():
                self._gave_up(job, WITHOUT_BASE)
            self._search.give_up_twins()
            return None
        if job := self._jobs.next_attempt():
            return job
        for stage in self._stages:
            if job := stage.next_job():
                return job
            is_over = stage.close()
            self._end_paused()
            if not is_over:
                return None
            self._mirror.settle()
        return None

    def _end_paused(self) -> None:
        """Where none waits to be promoted any more, those that did were pruned by the study."""
        for row in [] if self._study.paused.all else self.shown:
            if row.state == "paused":
                row.state = "pruned"

    @property
    def shown(self) -> list[Row]:
        """A row of each job of all processes of the search, as it stands."""
        return standing_rows([*self.earlier, *self.rows])

    @property
    def has_winner(self) -> bool:
        """Whether a trained trial completed, and the base model could be scored."""
        return self._search.has_winner

    @property
    def causes(self) -> list[Failure]:
        """Why trials failed, also in earlier processes: of those without the traceback."""
        tracebacks = {failure.message: failure.traceback for failure in self.failures}
        done = TrialState.COMPLETE
        known = [t.user_attrs for t in self._study.trials if ERROR in t.user_attrs and t.state != done]
        return [
            Failure(kind=attrs[ERROR_KIND], message=attrs[ERROR], traceback=tracebacks.get(attrs[ERROR], ""))
            for attrs in known
        ]

    @property
    def ended_early(self) -> str:
        """Why further trials were not worth their time; nothing where they were."""
        return self._suggestions.ended_early

    @property
    def left_out(self) -> str:
        """What a finished search had no time for, and the remedy; nothing where it started every trial."""
        return "" if self._search.lacks_base else self._suggestions.left_out

    @property
    def passed_over(self) -> str:
        """Which trials would have been finalists, had their weights been kept; nothing where all of them were."""
        return self._weights.passed_over

    @property
    def seconds_spent(self) -> float:
        """How long the search has taken, all of its processes together."""
        return self._budget.spent

    @property
    def seconds_left(self) -> float | None:
        """About how long the search still takes; None while nothing tells."""
        return time_left(self._config, [*self.earlier, *self.rows], self._clock(), self._budget.left)

    def is_running(self, name: str) -> bool:
        """Whether job `name` was handed out and has not ended."""
        return name in self._jobs.running

    def progress(self, name: str, step: int, steps: int, *, scoring: Position | None = None, note: str = "") -> None:
        """A worker says how far job `name` is.

        Args:
            name: Of the job.
            step: Of the optimizer.
            steps: Of the whole training.
            scoring: How far it is with the corpus that it scores; None where it does not score.
            note: Why it does not move; nothing where it does.
        """
        self._jobs.moved(name, step, steps, scoring, note)

    def rung(self, name: str, report: RungReport) -> bool:
        """Takes in a rung of job `name`; returns whether it goes on."""
        self.remember_time()
        job = self._jobs.running[name]
        if report.rung > job.tries.rung:  # one that is repeated wrote nothing
            job.tries.rung = report.rung
            self._folders.wrote()
        job.row.reached(report)
        job.best = report.value if job.best is None else max(job.best, report.value)
        job.row.value = job.best if report.scores else None  # guards alone have no value of the objective
        goes_on = job.stage.rung(job, report)
        if job.stage is self._search:
            self._mirror.study_changed()
        return goes_on

    def remember_time(self) -> None:
        """Writes down how long the search has taken, for the next process to go on from."""
        self._study.spent = self._budget.spent

    def ended(self, name: str) -> None:
        """Job `name` did all it was asked, or stopped where it was told to."""
        job = self._jobs.running[name]
        self._jobs.end(name, job.row.state if job.stopped else "complete")  # its stage says how one was stopped
        self.remember_time()
        if job.stopped:
            self._mirror.ended(name, stopped=True)
        job.stage.ended(job)
        if job.trial is not None:
            self._weights.drop()
        if not job.stopped:
            self._outage.passed()
            self._mirror.ended(name)  # last: training states that were dropped are not brought here
        self._mirror.study_changed()

    def failed(self, name: str, failure: Failure) -> None:
        """Job `name` did not end; it is tried again where that may help."""
        job = self._jobs.end(name, "failed", had_group=failure.kind != "no_resources")
        self.remember_time()
        job.row.note = failure.message[:200]
        self._folders.log(name, f"{failure.message}\n{failure.traceback}\n")
        again = self._retries.next_attempt(job.config, job.tries, failure)
        if again is None:
            self._gave_up(job, failure)
        else:
            self._take_up_again(job, again, failure)

    def _take_up_again(self, job: Job, config: TrialConfig, failure: Failure) -> None:
        job.row.state = "retried"
        if job.trial is not None:
            retried(job.trial, failure.kind, failure.message)
        if failure.kind == "no_resources" and not self._jobs.others_had_a_group(job):
            self._stop_reason = failure.message
        if failure.kind == "disk_full":
            self._folders.refused()
        if failure.kind == "storage":
            self._outage.met(failure.message)
        self._jobs.try_again(job, config)

    def _gave_up(self, job: Job, failure: Failure) -> None:
        self.failures.append(failure)
        self._mirror.study_changed()
        self._unscored = job.stage.gave_up(job, failure) or self._unscored
        if job.trial is not None:
            self._weights.drop()
