"""Which trials' weights and training states stay on disk, and which trials may so be finalists."""

from pathlib import Path

from optuna.trial import FrozenTrial

from tuner.request.config import SearchConfig
from tuner.run_dir.mirror import Mirror
from tuner.run_dir.names import trial_name
from tuner.schedule.disk import TrialFolders
from tuner.schedule.jobs import Jobs
from tuner.study.guards import GuardRule
from tuner.study.study import SearchStudy
from tuner.verdict import selection


class Weights:
    """Weights stay for the user's own settings and for the best trials only; resume state for running ones.

    Args:
        config: The search.
        study: Its trials.
        jobs: Its jobs.
        run_dir: Where trials' folders are.
        folders: The folders.
        mirror: Told what is dropped.
    """

    def __init__(
        self,
        config: SearchConfig,
        study: SearchStudy,
        jobs: Jobs,
        *,
        run_dir: Path,
        folders: TrialFolders,
        mirror: Mirror,
    ) -> None:
        self._config, self._study, self._jobs = config, study, jobs
        self._run_dir, self._folders, self._mirror = run_dir, folders, mirror
        self._least = max(1, config.finalist_count)
        self._rule = GuardRule.of(config.guard, config.guard_tolerance)

    def finalists(self) -> list[FrozenTrial]:
        """Returns the best trials whose weights are there: one that wins is scored on test and exported."""
        numbers = selection.finalists(self._study.search, self._least, self._run_dir, rule=self._rule)
        trials = self._study.search.get_trials(deepcopy=False)
        return [trials[number] for number in numbers]

    @property
    def passed_over(self) -> str:
        """Which trials would have been finalists, had their weights been kept; nothing where all of them were."""
        best = selection.finalists(self._study.search, self._least, rule=self._rule)
        there = {trial.number for trial in self.finalists()}
        gone = ", ".join(str(number) for number in best if number not in there)
        return gone and (
            f"finalists: of the best {len(best)} trials, the weights of {gone} were not kept: what was next took its "
            "place; raise --keep_checkpoints before the search"
        )

    def shortage(self) -> str | None:
        """Says why no job can be started, once all is dropped that may go; None where there is room.

        Raises:
            SearchStopped: There has been none for long.
        """
        running = len(self._jobs.running)
        if self._folders.shortage(running) is None:
            return None
        self.drop(fewest=True)
        return self._folders.shortage(running)

    def drop(self, *, fewest: bool = False) -> None:
        """Removes what is not worth its place; with `fewest`, all but what the search cannot do without."""
        count = self._least if fewest else max(self._least, self._config.keep_checkpoints)
        best = selection.finalists(self._study.search, count, rule=self._rule)
        winner = selection.winner(self._study.search, self._study.finalists)
        finalists = [trial.number for trial in self.finalists()]
        others = [*finalists, *self._study.users, *([] if winner is None else [winner])]
        kept = {trial_name(number) for number in [*best, *others]}
        alive = {*(job.config.name for job in self._jobs.open), *self._study.unfinished_names}
        alive |= set() if fewest else self._study.paused.next_names
        self._mirror.drop([f"trials/{folder}" for folder in self._folders.keep(kept, alive)])
