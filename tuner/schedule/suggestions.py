"""Which trial comes next: one that a broken search left, one that was paused and may go on, or a new one."""

from collections.abc import Mapping
from typing import Any

from optuna.trial import Trial

from tuner.request.config import SearchConfig
from tuner.run_dir.names import trial_name
from tuner.schedule.disk import TrialFolders
from tuner.schedule.jobs import Jobs
from tuner.schedule.time_budget import TimeBudget
from tuner.schedule.weights import Weights
from tuner.study.study import SearchStudy
from tuner.study.trials import SAMPLED, role_of

NO_TIME = "no time for its next rung"
Asked = tuple[Trial, Mapping[str, Any]]
"""A trial and its parameters."""


class Suggestions:
    """Asks the study for trials, as long as there are to be more and there is time for what they are to reach.

    Args:
        config: The search.
        study: Its trials.
        jobs: Their rows tell how long trials take; a trial that ends without a job gets one, too.
        budget: The time that there is.
        folders: Know how far a trial has come.
        weights: Of trials that end without a job.
    """

    def __init__(
        self,
        config: SearchConfig,
        study: SearchStudy,
        *,
        jobs: Jobs,
        budget: TimeBudget,
        folders: TrialFolders,
        weights: Weights,
    ) -> None:
        self._config, self._study, self._jobs = config, study, jobs
        self._budget, self._folders, self._weights = budget, folders, weights
        self.ended_early = ""
        """Why further trials were not worth their time."""

    @property
    def left_out(self) -> str:
        """What there was no time for, and the remedy; nothing where every trial was started."""
        issued, planned = self._study.issued, self._config.num_trials
        if self._config.time_budget is None or issued >= planned or self.ended_early:
            return ""
        why = self._budget.shortage(self._jobs.rows)
        return f"time budget: {issued} of {planned} trials were started: {why}; {self._budget.remedy(self._jobs.rows)}"

    def next(self, *, is_alone: bool) -> Asked | None:
        """Returns the next trial; None where there is none now.

        Args:
            is_alone: No other trial is running, whose end might let a paused one go on.
        """
        while self._study.has_unfinished:
            trial, params = self._study.ask()
            if self.has_time(trial_name(trial.number), role_of(trial), 0):
                return trial, params
            self._leave_out(trial, params)
        may_issue = self._may_issue()
        promoted = self._promoted(closing=is_alone and not may_issue)
        return promoted or (self._study.ask() if may_issue else None)

    def has_time(self, name: str, role: str, rung: int) -> bool:
        """Whether a trial at `rung`, or at a later one that it repeats the reports up to, reaches the one after it."""
        reached = max(rung, self._folders.rungs_reached(name))
        return role != SAMPLED or self._budget.allows_next_rung(reached, self._jobs.rows)

    def _promoted(self, *, closing: bool) -> Asked | None:
        """A paused trial that may go on; once no other is to come, the best at each rung."""
        while (asked := self._study.paused.promote(closing=closing)) is not None:
            trial, params = asked
            rung = max(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
            if self.has_time(trial_name(trial.number), SAMPLED, rung):
                return asked
            self._leave_out(trial, params)
        return None

    def _leave_out(self, trial: Trial, params: Mapping[str, Any]) -> None:
        """Ends a trial where it stands, as at a rung."""
        self._study.tell.pruned(trial)
        row = self._jobs.row(trial_name(trial.number), SAMPLED, params)
        row.state, row.note, row.ended = "pruned", NO_TIME, row.started
        self._jobs.rows.append(row)
        self._weights.drop()

    def _may_issue(self) -> bool:
        left = self._config.num_trials - self._study.issued
        if left > 0 and not self.ended_early and self._config.patience is not None:
            self.ended_early = self._study.no_longer_pays(left=left, patience=self._config.patience)
        return left > 0 and not self.ended_early and self._budget.allows_trial(self._jobs.rows)
