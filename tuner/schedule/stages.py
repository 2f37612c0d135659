"""What is scored when the search is over: the base model as the finalists encode, guards, mixtures, and once, the test
set.

Every stage follows from the study and from files that the stages before it left in the trials' folders, so that a
broken search goes on where it was, and nothing is scored twice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from trainables.config import TrialConfig
from tuner.request.config import SearchConfig
from tuner.run_dir.names import mixture_name, task_name, weights_of
from tuner.study import guards
from tuner.study.study import SearchStudy, arguments_of
from tuner.study.trials import USER
from tuner.verdict import selection
from tuner.verdict.encoding import base_folder, own_settings, settings_of

MakeJob = Callable[..., TrialConfig]
"""(name, params, **fields of TrialConfig) -> a job."""


class Finals:
    """The stages that follow the finalists' retrainings.

    Args:
        config: The search.
        study: Its trials.
        run_dir: Where trials' folders are.
        job: Makes a job of the search.
    """

    def __init__(self, config: SearchConfig, study: SearchStudy, *, run_dir: Path, job: MakeJob) -> None:
        self._config, self._study, self._run_dir, self._job = config, study, run_dir, job
        self._own = own_settings(config.arguments)
        self._stages: list[Callable[[], list[TrialConfig]]] = [
            self._encoding_jobs,
            self._guard_jobs,
            self._mixture_jobs,
            self._test_jobs,
        ]

    def next_stage(self) -> list[TrialConfig]:
        """Returns the jobs of the next stage that has any; an empty list when nothing is left."""
        while self._stages:
            if jobs := self._stages.pop(0)():
                return jobs
        return []

    def _encoding_jobs(self) -> list[TrialConfig]:
        """The base model on dev, encoded as each of the finalists is: what training gave is measured from there."""
        return [
            self._job(name, settings, split="dev")
            for name, settings in self._bases(self._finalists()).items()
            if settings and not (self._run_dir / "trials" / name / "dev.json").exists()
        ]

    def _guard_jobs(self) -> list[TrialConfig]:
        """The base model, also as the finalists encode, and the finalists on the guards."""
        numbers = self._finalists()
        bases = [(name, settings, None) for name, settings in self._bases(numbers).items()]
        return [
            self._job(name, params, split=None, checkpoint=checkpoint, guards=self._config.guard)
            for name, params, checkpoint in [*bases, *self._models(numbers)]
            if not self._knows(name, self._config.guard)
        ]

    def _finalists(self) -> list[int]:
        numbers = selection.finalists(self._study.search, max(1, self._config.finalist_count), self._run_dir)
        return list(dict.fromkeys([*numbers, self._winner()]))

    def _bases(self, numbers: Sequence[int]) -> dict[str, dict[str, Any]]:
        """The base model as it is, and as each of the trials `numbers` encodes: folder -> settings."""
        trials = self._trials()
        settings = [settings_of(arguments_of(trials[number]), self._own) for number in numbers]
        return {base_folder(each): each for each in ({}, *settings)}

    def _knows(self, name: str, asked: Sequence[str]) -> bool:
        """Whether the model in RUN/trials/`name` was scored on the guards `asked`."""
        known = guards.read_scores(self._run_dir, name) or {}
        return all(task_name(guard) in known for guard in asked)

    def _mixture_jobs(self) -> list[TrialConfig]:
        """The winner mixed with the base model, on dev and guards."""
        number = self._winner()
        wanted = {task_name(guard) for guard in self._config.guard}
        known = guards.read_mixtures(self._run_dir, number, self._config.metric)
        if not self._config.guard or (known and wanted <= known[0].guard.keys()):
            return []
        name, params, checkpoint = self._model(number)
        kind = {"checkpoint": checkpoint, "guards": self._config.guard, "alphas": guards.ALPHAS}
        return [self._job(name, params, **kind)] if checkpoint else []

    def _test_jobs(self) -> list[TrialConfig]:
        """The base model, the user's own settings and the winner, mixed if that was better, each scored once.

        The base model as it is, as the winner encodes, and with the settings that it is best used with.
        """
        winner, config = self._winner(), self._config
        held = (config.guard_tolerance, self._own)
        mixed = selection.chosen_mixture(self._run_dir, self._study.search, winner, config.metric, *held)
        bases = self._bases([winner])
        settings = selection.best_settings(self._run_dir, self._study.search, config.metric, *held)
        bases[base_folder(settings)] = settings
        jobs = [self._job(name, each, split="test") for name, each in bases.items()]
        if mixed is not None:
            _, params, checkpoint = self._model(winner)
            name = mixture_name(winner, mixed.alpha)
            kind = {"checkpoint": checkpoint, "alpha": mixed.alpha, "guards": self._config.guard}
            job = self._job(name, params, split="test", **kind)
            jobs.append(self._guards_of(job) if self._is_tested(job) else job)
        users = [t.number for t in self._trials() if t.user_attrs.get("role") == USER]
        models = self._models(sorted({*users, *([winner] if mixed is None else [])}))
        jobs += [self._job(name, params, split="test", checkpoint=path) for name, params, path in models]
        return [job for job in jobs if not (self._is_tested(job) and self._knows(job.name, job.guards))]

    def _guards_of(self, job: TrialConfig) -> TrialConfig:
        """A mixture that was saved and scored on test, on the guards alone: some may have been asked for since."""
        return replace(job, split=None, alpha=None, checkpoint=str(Path(job.directory) / "checkpoint"))

    def _is_tested(self, job: TrialConfig) -> bool:
        folder = Path(job.directory)
        saved = job.alpha is None or (folder / "checkpoint").is_dir()
        return saved and (folder / "test.json").exists()

    def _winner(self) -> int:
        number = selection.winner(
            self._study.search,
            self._study.finalists,
            run_dir=self._run_dir,
            tolerance=self._config.guard_tolerance,
            own=self._own,
        )
        assert number is not None, "finalists were retrained, so one of them wins"
        return number

    def _models(self, numbers: Sequence[int]) -> Iterator[tuple[str, dict[str, Any], str | None]]:
        """Yields those of `numbers` whose weights are there."""
        yield from (model for number in numbers if (model := self._model(number))[2])

    def _model(self, number: int) -> tuple[str, dict[str, Any], str | None]:
        """Returns folder name, parameters and weights of a trial; None where its weights are gone."""
        name = f"{number:04d}"
        weights = weights_of(self._run_dir, number)
        return name, arguments_of(self._trials()[number]), str(weights) if weights.is_dir() else None

    def _trials(self) -> list[FrozenTrial]:
        return self._study.search.get_trials(deepcopy=False)
