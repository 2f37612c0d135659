"""What runs next, and what becomes of it: search, then finalists, then the test set.

The agenda is the driver's side of a search without any Ray in it. An executor asks it for jobs and tells it what came
of them; whatever must outlive the process is in the study.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from trainables.config import RungReport, TrialConfig
from trainables.tally import Position
from tuner.interrupts import SearchStopped
from tuner.request.arguments import translated
from tuner.request.config import SearchConfig
from tuner.run_dir.mirror import Mirror
from tuner.run_dir.store import RunStore
from tuner.schedule.disk import TrialFolders
from tuner.schedule.jobs import Job, Row
from tuner.schedule.outage import Outage
from tuner.schedule.retries import Failure, Retries
from tuner.schedule.stages import Finals
from tuner.schedule.time_budget import TimeBudget
from tuner.study.study import SearchStudy, arguments_of
from tuner.study.trials import BASE, SAMPLED
from tuner.verdict import selection
from tuner.verdict.judge import rests_on

_ROLES = {None: "guards", "dev": "encoding", "test": "test"}
"""What a job that only scores is for, by its split."""

_NO_TIME = "no time for its next rung"


class Agenda:
    """Hands out jobs and takes in their rungs and ends.

    Args:
        config: The search.
        study: Its trials.
        run_dir: Where trials' folders are.
        arguments: FlagEmbedding's arguments that hold for every trial, as this machine can honour them.
        eval_data: BEIR folder with dev and test.
        trial_bytes: What a trial may write while it runs.
        mirror: Keeps object storage up to date. None: the run directory is where it is to be.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        config: SearchConfig,
        study: SearchStudy,
        *,
        run_dir: Path,
        arguments: Mapping[str, Any],
        eval_data: str,
        trial_bytes: int = 0,
        mirror: Mirror | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._study, self._run_dir = config, study, run_dir
        self._mirror = mirror or Mirror(RunStore(str(run_dir), run_dir))
        self._arguments, self._eval_data, self._clock = arguments, eval_data, clock
        self._budget = TimeBudget(config, spent=study.spent, told=lambda: study.trials, clock=clock)
        self._folders = TrialFolders(
            run_dir / "trials", trial_bytes=trial_bytes, budget=config.disk_budget_bytes, clock=clock
        )
        self._outage = Outage(clock)
        self._running: dict[str, Job] = {}
        self._retries, self._waiting = Retries(), list[Job]()
        self._twins: list[tuple[Trial, Mapping[str, Any]]] = []
        """Trials that wait for the end of one with the same parameters."""
        self._stop_reason = self._unscored = ""
        self._placed = -math.inf
        """When a job that had a worker group last ended."""
        self._finals = Finals(config, study, run_dir=run_dir, job=self._job)
        self._scorings: list[TrialConfig] = []
        self._base_failed = False
        self.ended_early = ""
        """Why further trials were not worth their time."""
        self.note = ""
        """Why no job is handed out."""
        self.rows: list[Row] = []
        self.failures: list[Failure] = []
        self.finished = False

    def next(self) -> TrialConfig | None:
        """Returns the next job, or None when there is none now: wait for a running one, or `finished`.

        Raises:
            SearchStopped: No machine has a place for a worker group, the disk was full for long, or storage away; or
                the base model or the winner could not be scored on test.
        """
        if self._stop_reason or (self._unscored and not self._running):
            raise SearchStopped(self._stop_reason or self._unscored)
        if self._unscored or self._is_paused():
            return None
        if self._base_failed:
            self._give_up_waiting()
        job = None if self._base_failed else self._retry() or self._search_job() or self._after_search()
        if job is None:
            self.finished = not self._running and not self._waiting and not self._twins
            return None
        job = replace(job, config=self._retries.known(job.config))
        self._running[job.config.name] = job
        job.row.started = self._clock()  # a retry may have waited for long
        self.rows.append(job.row)
        try:
            self._folders.opened(job.config)
        except OSError as error:
            self.failed(job.config.name, Failure(kind="disk_full", message=f"{type(error).__name__}: {error}"))
            return None
        return job.config

    def _is_paused(self) -> bool:
        self.note = self._outage.pause(len(self._running)) or self._shortage() or ""
        return bool(self.note)

    def _shortage(self) -> str | None:
        if self._folders.shortage(len(self._running)) is None:
            return None
        self._drop_weights(fewest=True)
        return self._folders.shortage(len(self._running))

    @property
    def has_winner(self) -> bool:
        """Whether a trained trial completed, and the base model could be scored."""
        return bool(selection.finalists(self._study.search, 1)) and not self._base_failed

    @property
    def causes(self) -> list[Failure]:
        """Why trials failed, also in earlier processes: of those without the traceback."""
        tracebacks = {failure.message: failure.traceback for failure in self.failures}
        done = TrialState.COMPLETE
        known = [t.user_attrs for t in self._study.trials if "error" in t.user_attrs and t.state != done]
        return [
            Failure(kind=attrs["error_kind"], message=attrs["error"], traceback=tracebacks.get(attrs["error"], ""))
            for attrs in known
        ]

    @property
    def left_out(self) -> str:
        """What a finished search had no time for, and the remedy; nothing where it started every trial."""
        issued, planned = self._study.issued, self._config.num_trials
        if self._config.time_budget is None or self._base_failed or issued >= planned or self.ended_early:
            return ""
        why = self._budget.shortage(self.rows)
        return f"time budget: {issued} of {planned} trials were started: {why}; raise --time_budget"

    @property
    def passed_over(self) -> str:
        """Which trials would have been finalists, had their weights been kept; nothing where all of them were."""
        best = selection.finalists(self._study.search, max(1, self._config.finalist_count))
        there = {trial.number for trial in self._candidates()}
        gone = ", ".join(str(number) for number in best if number not in there)
        return gone and (
            f"finalists: of the best {len(best)} trials, the weights of {gone} were not kept: what was next took its "
            "place; raise --keep_checkpoints before the search"
        )

    def is_running(self, name: str) -> bool:
        """Whether job `name` was handed out and has not ended."""
        return name in self._running

    def progress(self, name: str, step: int, steps: int) -> None:
        """A worker says how far job `name` is."""
        if job := self._running.get(name):
            job.row.step, job.row.steps = step, steps
            if step and job.row.first_step is None:
                job.row.first_step = self._clock(), step

    def scores(self, name: str, position: Position | None) -> None:
        """A worker says how far job `name` is with the corpus that it scores; None where it does not score."""
        if job := self._running.get(name):
            job.row.scoring = position

    def waits(self, name: str, note: str) -> None:
        """A slot says why job `name` does not move; nothing where it does."""
        if job := self._running.get(name):
            job.row.note = note

    def rung(self, name: str, report: RungReport) -> bool:
        """Takes in a rung of job `name`; returns whether it goes on."""
        self.remember_time()
        job = self._running[name]
        if report.rung > job.tries.rung:  # one that is repeated wrote nothing
            job.tries.rung = report.rung
            self._folders.wrote()
        job.row.rung, job.row.step = report.rung, report.step
        job.best = report.value if job.best is None else max(job.best, report.value)
        job.row.value = job.best if report.scores else None  # guards alone have no value of the objective
        if job.trial is None:
            return True
        if job.finalist:
            job.trial.set_user_attr("seconds", dict(report.seconds))
            return True
        goes_on = self._study.report(job.trial, report)
        self._mirror.study_changed()
        if goes_on and not report.last:
            goes_on = self._has_time(name, job.row.role, report.rung)
            job.row.note = "" if goes_on else _NO_TIME
        job.stopped = not goes_on
        return goes_on

    def remember_time(self) -> None:
        """Writes down how long the search has taken, for the next process to go on from."""
        self._study.spent = self._budget.spent

    def ended(self, name: str) -> None:
        """Job `name` did all it was asked, or stopped where it was told to."""
        self._placed = self._clock()
        job = self._close(name, "complete")
        if job.stopped:
            self._mirror.ended(name, stopped=True)
        self._take_in(job)
        if not job.stopped:
            self._outage.passed()
            self._mirror.ended(name)  # last: training states that were dropped are not brought here
        self._mirror.study_changed()

    def _take_in(self, job: Job) -> None:
        if job.trial is None:
            return
        if job.finalist:
            self._study.finalists.tell(job.trial, job.best)
        elif job.stopped:
            job.row.state = "paused" if self._study.stopped(job.trial) else "pruned"
        else:
            self._study.complete(job.trial)
        self._drop_weights()

    def failed(self, name: str, failure: Failure) -> None:
        """Job `name` did not end; it is tried again where that may help."""
        job = self._close(name, "failed")
        job.row.note = failure.message[:200]
        if failure.kind != "no_resources":
            self._placed = self._clock()
        self._folders.log(name, f"{failure.message}\n{failure.traceback}\n")
        again = self._retries.next_attempt(job.config, job.tries, failure)
        if again is None:
            self._gave_up(job, failure)
        else:
            self._take_up_again(job, again, failure)

    def _take_up_again(self, job: Job, config: TrialConfig, failure: Failure) -> None:
        job.row.state = "retried"
        if job.trial is not None:
            self._study.retried(job.trial, failure.kind, failure.message)
        if failure.kind == "no_resources" and not self._others_had_a_group(job):
            self._stop_reason = failure.message
        if failure.kind == "disk_full":
            self._folders.refused()
        if failure.kind == "storage":
            self._outage.met(failure.message)
        row = self._row(job.row.name, job.row.role, job.row.params)
        self._waiting.append(replace(job, config=config, row=row, stopped=False, best=None))

    def _others_had_a_group(self, job: Job) -> bool:
        """Whether what `job` waited for was, or is, held by another job or by the group that it left behind."""
        has_group = any(not other.row.note for other in self._running.values())
        return has_group or self._placed > job.row.started

    def _gave_up(self, job: Job, failure: Failure) -> None:
        self.failures.append(failure)
        self._base_failed |= job.row.role == BASE  # nothing can be compared with
        self._mirror.study_changed()
        if job.trial is None and rests_on(job.config, self._run_dir, self._study, self._config):
            self._unscored = f"{job.config.name} could not be scored on test: {failure.message}"
        if job.trial is None:
            return
        if job.finalist:
            self._study.finalists.tell(job.trial, state=TrialState.FAIL)
        elif job.row.role == BASE:
            self._study.unscored(job.trial, failure.kind, failure.message)
        elif failure.kind in ("out_of_memory", "non_finite"):
            self._study.infeasible(job.trial, failure.kind, failure.message)
        else:
            self._study.failed(job.trial, failure.kind, failure.message)
        self._drop_weights()

    def _give_up_waiting(self) -> None:
        """Ends the trials that nothing can be compared with."""
        without = Failure(kind="error", message="the base model could not be scored: no trial can be compared")
        for job in self._waiting:
            self._gave_up(job, without)
        for trial, _ in self._twins:
            self._study.failed(trial, without.kind, without.message)
        self._waiting, self._twins = [], []

    def _close(self, name: str, state: str) -> Job:
        job = self._running.pop(name)
        job.row.state, job.row.ended = state, self._clock()
        self.remember_time()
        return job

    def _row(self, name: str, role: str, params: Mapping[str, Any]) -> Row:
        return Row(name=name, role=role, params=params, started=self._clock())

    def _retry(self) -> Job | None:
        return self._waiting.pop(0) if self._waiting else None

    # The search

    def _search_job(self) -> Job | None:
        if self._config.guard_constraint and any(job.row.role == BASE for job in self._running.values()):
            return None  # what is lost on the guards is measured against it
        while (asked := self._asked()) is not None:
            trial, params = asked
            earlier = self._study.duplicate_of(trial, params)
            if earlier is not None:
                self._reuse(trial, params, earlier)
            elif self._runs_already(params):
                self._twins.append(asked)
            else:
                return self._trial_job(trial, params)
        return None

    def _asked(self) -> tuple[Trial, Mapping[str, Any]] | None:
        """A trial whose twin has ended, or the study's next; None where there is none now."""
        for index, (_, params) in enumerate(self._twins):
            if not self._runs_already(params):
                return self._twins.pop(index)
        while self._study.has_unfinished:
            trial, params = self._study.ask()
            if self._has_time(f"{trial.number:04d}", self._study.role(trial), 0):
                return trial, params
            self._leave_out(trial, params)
        may_issue = self._may_issue()
        return self._promoted(closing=not may_issue) or (self._study.ask() if may_issue else None)

    def _promoted(self, *, closing: bool) -> tuple[Trial, Mapping[str, Any]] | None:
        """A paused trial that may go on; once no other is to come, the best at each rung."""
        last = closing and not self._is_searching
        while (asked := self._study.promote(closing=last)) is not None:
            trial, params = asked
            rung = max(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
            if self._has_time(f"{trial.number:04d}", SAMPLED, rung):
                return asked
            self._leave_out(trial, params)
        return None

    def _has_time(self, name: str, role: str, rung: int) -> bool:
        """Whether a trial at `rung`, or at a later one that it repeats the reports up to, reaches the one after it."""
        reached = max(rung, self._folders.rungs_reached(name))
        return role != SAMPLED or self._budget.allows_next_rung(reached, self.rows)

    def _leave_out(self, trial: Trial, params: Mapping[str, Any]) -> None:
        """Ends a trial where it stands, as at a rung."""
        self._study.pruned(trial)
        row = self._row(f"{trial.number:04d}", SAMPLED, params)
        row.state, row.note, row.ended = "pruned", _NO_TIME, row.started
        self.rows.append(row)
        self._drop_weights()

    def _runs_already(self, params: Mapping[str, Any]) -> bool:
        """Whether another slot, or one that is to take it up again, has a trial of the same parameters."""
        jobs = [job for job in [*self._running.values(), *self._waiting] if job.trial is not None and not job.finalist]
        return bool(params) and any(job.row.params == params for job in jobs)

    def _reuse(self, trial: Trial, params: Mapping[str, Any], earlier: FrozenTrial) -> None:
        self._study.reuse(trial, earlier)
        row = self._row(f"{trial.number:04d}", SAMPLED, params)
        row.value, row.state = earlier.user_attrs.get("best_value"), f"as {earlier.number}"
        self.rows.append(row)

    def _may_issue(self) -> bool:
        left = self._config.num_trials - self._study.issued
        if left > 0 and not self.ended_early and self._config.patience is not None:
            self.ended_early = self._study.no_longer_pays(left=left, patience=self._config.patience)
        return left > 0 and not self.ended_early and self._budget.allows_trial(self.rows)

    def _trial_job(self, trial: Trial, params: Mapping[str, Any]) -> Job:
        role = self._study.role(trial)
        rungs = () if role == BASE else self._config.rungs
        guards = self._config.guard if self._config.guard_constraint else ()
        config = self._job(f"{trial.number:04d}", params, rungs=rungs, guards=guards)
        trial.set_user_attr("seed", self._config.seed)
        return Job(config=config, row=self._row(config.name, role, params), trial=trial)

    def _job(self, name: str, params: Mapping[str, Any], *, seed: int | None = None, **kind: Any) -> TrialConfig:
        arguments = translated({**self._arguments, **params, "seed": self._config.seed if seed is None else seed})
        return TrialConfig(
            name=name,
            directory=str(self._run_dir / "trials" / name),
            arguments=arguments,
            eval_data=self._eval_data,
            metric=self._config.metric,
            workers=self._config.workers,
            **kind,
        )

    # Finalists and test

    def _after_search(self) -> Job | None:
        if self._is_searching:
            return None
        self._study.stop_paused()
        if not self.has_winner:
            return None
        self._mirror.settle()
        job = self._finalist_job()
        if job is None:
            self._give_up_retrainings()
        return job or self._final_job()

    @property
    def _is_searching(self) -> bool:
        return any(job.trial is not None and not job.finalist for job in self._running.values())

    def _give_up_retrainings(self) -> None:
        finalists = [trial.number for trial in self._candidates()] if self._config.finalist_count else []
        if self._study.give_up_retrainings(finalists):
            self._drop_weights()

    def _candidates(self) -> list[FrozenTrial]:
        """The best trials whose weights are there: one that wins is scored on test and exported."""
        numbers = selection.finalists(self._study.search, max(1, self._config.finalist_count), self._run_dir)
        trials = self._study.search.get_trials(deepcopy=False)
        return [trials[number] for number in numbers]

    def _finalist_job(self) -> Job | None:
        if self._config.finalist_count == 0 or not self._budget.allows_retraining(self.rows):
            return None
        for source in self._candidates():
            for offset in range(1, self._config.finalist_seeds + 1):
                seed = self._config.seed + offset
                name = f"{source.number:04d}-seed{seed}"
                trial = None if name in self._running else self._study.retraining(source.number, seed)
                if trial is not None:
                    params = arguments_of(source)
                    config = self._job(name, params, seed=seed, rungs=self._config.rungs)
                    row = self._row(name, "finalist", params)
                    return Job(config=config, row=row, trial=trial, finalist=True)
        return None

    def _final_job(self) -> Job | None:
        """A stage begins when all of the one before it has ended: it depends on what that found."""
        if not self._scorings and not self._running:
            self._scorings = self._finals.next_stage()
        if not self._scorings:
            return None
        config = self._scorings.pop(0)
        role = "mixtures" if config.alphas else _ROLES[config.split]
        return Job(config=config, row=self._row(config.name, role, {}))

    def _drop_weights(self, *, fewest: bool = False) -> None:
        """Weights stay for the user's own settings and for the best trials only; resume state for running ones."""
        least = max(1, self._config.finalist_count)
        best = selection.finalists(self._study.search, least if fewest else max(least, self._config.keep_checkpoints))
        winner = selection.winner(self._study.search, self._study.finalists)
        candidates = [trial.number for trial in self._candidates()]
        others = [*candidates, *self._study.users, *([] if winner is None else [winner])]
        kept = {f"{number:04d}" for number in [*best, *others]}
        alive = {*self._running, *(job.config.name for job in self._waiting), *self._study.unfinished_names}
        alive |= set() if fewest else self._study.next_names
        self._mirror.drop([f"trials/{folder}" for folder in self._folders.keep(kept, alive)])
