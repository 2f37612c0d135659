"""The search itself: the base model, the user's own settings and what the sampler suggests, pruned at their rungs."""

from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial, Trial

from trainables.config import RungReport
from tuner.request.config import SearchConfig
from tuner.run_dir.names import trial_name
from tuner.schedule.jobs import Job, Jobs, TrialConfigs
from tuner.schedule.pool import CandidatePool
from tuner.schedule.retries import Failure
from tuner.schedule.suggestions import NO_TIME, Asked, Suggestions
from tuner.study.study import SearchStudy
from tuner.study.trials import BASE, BEST_VALUE, PROMOTED, SAMPLED, SEED, arguments_of, role_of
from tuner.verdict import selection

WITHOUT_BASE = Failure(kind="error", message="the base model could not be scored: no trial can be compared")


class SearchStage:
    """Trains what is suggested, each set of parameters once.

    Args:
        config: The search.
        study: Its trials.
        suggestions: Which trial comes next.
        configs: Makes the trials' configurations.
        jobs: Of all stages.
        pool: What rungs are scored on.
    """

    def __init__(
        self,
        config: SearchConfig,
        study: SearchStudy,
        suggestions: Suggestions,
        *,
        configs: TrialConfigs,
        jobs: Jobs,
        pool: CandidatePool,
    ) -> None:
        self._config, self._study, self._suggestions = config, study, suggestions
        self._configs, self._jobs, self._pool = configs, jobs, pool
        self._twins: list[Asked] = []
        """Trials that wait for the end of one with the same parameters."""
        self.lacks_base = False
        """The base model could not be scored: nothing can be compared with it."""

    @property
    def has_winner(self) -> bool:
        """Whether a trained trial completed, and the base model could be scored."""
        return bool(selection.finalists(self._study.search, 1)) and not self.lacks_base

    @property
    def has_twins(self) -> bool:
        """Whether trials wait for the end of one with the same parameters."""
        return bool(self._twins)

    def next_job(self) -> Job | None:
        """Returns the next trial that no earlier one has the end of."""
        waits_for_base = self._config.guard_constraint or self._pool.is_wanted
        if waits_for_base and any(job.row.role == BASE for job in self._jobs.running.values()):
            return None  # what is lost on the guards is measured against it, and it makes the pool
        while (asked := self._asked()) is not None:
            earlier = self._study.duplicate_of(*asked)
            if earlier is not None:
                self._reuse(*asked, earlier)
            elif self._runs_already(asked):
                self._twins.append(asked)
            else:
                return self._job(*asked)
        if self._twins and not self._jobs.of(self):
            self._study.paused.stop()  # nothing else is to come: who waited for one is told of its end
            return self.next_job()
        return None

    def close(self) -> bool:
        """Ends the paused trials once none runs; what follows is for a trial that has completed."""
        if self._jobs.of(self):
            return False
        self._study.paused.stop()
        return self.has_winner

    def rung(self, job: Job, report: RungReport) -> bool:
        """Tells the study of a rung; a trial goes on where the pruner lets it and its next one has time."""
        goes_on = self._study.tell.report(job.told, report)
        if goes_on and not report.last:
            goes_on = self._suggestions.has_time(job.config.name, job.row.role, report.rung)
            job.row.note = "" if goes_on else NO_TIME
        job.stopped = not goes_on
        return goes_on

    def ended(self, job: Job) -> None:
        """Tells the study of the end of a trial, which may be only paused."""
        if job.stopped:
            job.row.state = "paused" if self._study.tell.stopped(job.told) else "pruned"
        else:
            self._study.tell.complete(job.told)

    def gave_up(self, job: Job, failure: Failure) -> str:
        """Tells the study why a trial failed; what could not work with its parameters is a violated constraint."""
        if job.row.role == BASE:
            self.lacks_base = True
            self._study.tell.unscored(job.told, failure.kind, failure.message)
        elif failure.kind in ("out_of_memory", "non_finite"):
            self._study.tell.infeasible(job.told, failure.kind, failure.message)
        else:
            self._study.tell.failed(job.told, failure.kind, failure.message)
        return ""

    def give_up_twins(self) -> None:
        """Ends the trials that wait for the end of another and can be compared with nothing."""
        for trial, _ in self._twins:
            self._study.tell.failed(trial, WITHOUT_BASE.kind, WITHOUT_BASE.message)
        self._twins = []

    def _asked(self) -> Asked | None:
        """A trial whose twin has ended, or the next suggestion; None where there is none now."""
        for index, twin in enumerate(self._twins):
            if not self._runs_already(twin):
                return self._twins.pop(index)
        return self._suggestions.next(is_alone=not self._jobs.of(self))

    def _runs_already(self, asked: Asked) -> bool:
        """Whether a trial of the same parameters runs, is to be taken up again, or is paused.

        A promoted trial has no such other, but in searches that earlier versions began.
        """
        trial, params = asked
        paused = [] if PROMOTED in trial.user_attrs else map(arguments_of, self._study.paused.all)
        return bool(params) and dict(params) in [*(dict(job.row.params) for job in self._jobs.of(self)), *paused]

    def _reuse(self, trial: Trial, params: Mapping[str, Any], earlier: FrozenTrial) -> None:
        self._study.tell.reuse(trial, earlier)
        row = self._jobs.row(trial_name(trial.number), SAMPLED, params)
        row.value, row.state = earlier.user_attrs.get(BEST_VALUE), f"as {earlier.number}"
        row.ended = row.started
        self._jobs.rows.append(row)

    def _job(self, trial: Trial, params: Mapping[str, Any]) -> Job:
        role = role_of(trial)
        fields = self._pool.to_make() if role == BASE else {"rungs": self._config.rungs, **self._pool.to_use()}
        guards = self._config.guard if self._config.guard_constraint else ()
        pauses = role == SAMPLED and self._study.paused.are_kept and self._configs.keeps_stopped
        config = self._configs.make(trial_name(trial.number), params, guards=guards, pauses=pauses, **fields)
        trial.set_user_attr(SEED, self._config.seed)
        return Job(config=config, row=self._jobs.row(config.name, role, params), stage=self, trial=trial)
