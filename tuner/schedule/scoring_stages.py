"""What is scored when the search is over: the base model as the finalists encode, guards, mixtures, and once, the test
set.

Every stage follows from the study and from files that the stages before it left in the trials' folders, so that a
broken search goes on where it was, and nothing is scored twice.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from trainables.config import RungReport, TrialConfig
from trainables.names import CHECKPOINT, scores_file
from tuner.request.config import SearchConfig
from tuner.run_dir.names import PREVIOUS_FOLDER, TRIALS, mixture_name, task_name, trial_name, weights_of
from tuner.schedule.jobs import Job, Jobs, Stage, TrialConfigs
from tuner.schedule.retries import Failure
from tuner.study import guards
from tuner.study.guards import GuardRule
from tuner.study.study import SearchStudy
from tuner.study.trials import ROLE, USER, arguments_of, whole_corpus
from tuner.verdict import selection
from tuner.verdict.encoding import base_folder, own_settings, settings_of
from tuner.verdict.judge import rests_on
from tuner.verdict.previous import earlier_model

_ROLES = {None: "guards", "dev": "encoding", "test": "test"}
"""What a job that only scores is for, by its split."""
_DEV = "dev"
"""What a job is for that scores a trial on the whole corpus of dev."""


class ScoringStage:
    """Scores models. It begins when every job before it has ended: what it has to do depends on what they found.

    Args:
        find: Returns what is to be scored; called once, when the stage begins.
        jobs: Of all stages.
        is_needed: Whether there is no verdict without a job.
    """

    def __init__(
        self, find: Callable[[], list[TrialConfig]], *, jobs: Jobs, is_needed: Callable[[TrialConfig], bool]
    ) -> None:
        self._find, self._jobs, self._is_needed = find, jobs, is_needed
        self._left: list[TrialConfig] | None = None

    def next_job(self) -> Job | None:
        """Returns the next scoring."""
        if self._left is None and not self._jobs.running:
            self._left = self._find()
        if not self._left:
            return None
        config = self._left.pop(0)
        on_dev = config.split == "dev" and config.checkpoint is not None
        role = "mixtures" if config.alphas else _DEV if on_dev else _ROLES[config.split]
        return Job(config=config, row=self._jobs.row(config.name, role, {}), stage=self)

    def close(self) -> bool:
        """The stage is over when all of it was scored."""
        return not self._jobs.running

    def rung(self, job: Job, report: RungReport) -> bool:  # noqa: ARG002
        """Scores are in the model's folder; the study is told of none."""
        return True

    def ended(self, job: Job) -> None:
        """Scores are in the model's folder; the study is told of none."""

    def gave_up(self, job: Job, failure: Failure) -> str:
        """Returns which model has no score on test, where there is no verdict without it."""
        if not self._is_needed(job.config):
            return ""
        model = "the base model" if job.config.name == trial_name(0) else f"trial {job.config.name}"
        return f"{model} could not be scored on test: {failure.message}"


class WholeCorpusStage(ScoringStage):
    """Scores trials on the whole corpus of dev, which were scored on a pool of it at their rungs.

    Args:
        find: Returns what is to be scored.
        jobs: Of all stages.
        is_needed: Whether there is no verdict without a job.
        told: Takes in the score of a trial, by its number.
    """

    def __init__(
        self,
        find: Callable[[], list[TrialConfig]],
        *,
        jobs: Jobs,
        is_needed: Callable[[TrialConfig], bool],
        told: Callable[[int, RungReport], None],
    ) -> None:
        super().__init__(find, jobs=jobs, is_needed=is_needed)
        self._told = told

    def rung(self, job: Job, report: RungReport) -> bool:
        """Tells the study of the score."""
        self._told(int(job.config.name), report)
        return True


class _Models:
    """The models that may be scored: the base model, and what trials have made of it.

    Args:
        config: The search.
        study: Its trials.
        run_dir: Where their folders are.
    """

    def __init__(self, config: SearchConfig, study: SearchStudy, run_dir: Path) -> None:
        self._config, self._study, self._run_dir = config, study, run_dir
        self.own, self.rule = own_settings(config.arguments), GuardRule.of(config.guard, config.guard_tolerance)

    def best(self) -> list[int]:
        """Returns the numbers of the trials that become finalists, the best first."""
        count = max(1, self._config.finalist_count)
        return selection.finalists(self._study.search, count, self._run_dir, rule=self.rule)

    def finalists(self) -> list[int]:
        """Returns the trials that become finalists and the winner, each once."""
        return list(dict.fromkeys([*self.best(), self.winner()]))

    def bases(self, numbers: Sequence[int]) -> dict[str, dict[str, Any]]:
        """Returns the base model as it is, and as each of the trials `numbers` encodes: folder -> settings."""
        trials = self.trials()
        settings = [settings_of(arguments_of(trials[number]), self.own) for number in numbers]
        return {base_folder(each): each for each in ({}, *settings)}

    def winner(self) -> int:
        """Returns the number of the trial that wins."""
        number = selection.winner(
            self._study.search,
            self._study.finalists,
            run_dir=self._run_dir,
            rule=self.rule,
            own=self.own,
        )
        assert number is not None, "finalists were retrained, so one of them wins"
        return number

    def those_there(self, numbers: Sequence[int]) -> Iterator[tuple[str, dict[str, Any], str | None]]:
        """Yields those of `numbers` whose weights are there."""
        yield from (model for number in numbers if (model := self.one(number))[2])

    def one(self, number: int) -> tuple[str, dict[str, Any], str | None]:
        """Returns folder name, parameters and weights of a trial; None where its weights are gone."""
        name = trial_name(number)
        weights = weights_of(self._run_dir, number)
        return name, arguments_of(self.trials()[number]), str(weights) if weights.is_dir() else None

    def trials(self) -> list[FrozenTrial]:
        """Returns all trials of the search."""
        return self._study.search.get_trials(deepcopy=False)


class Scorings:
    """Finds what is left to score once the finalists are retrained.

    Args:
        config: The search.
        study: Its trials.
        configs: Makes the jobs' configurations.
    """

    def __init__(self, config: SearchConfig, study: SearchStudy, *, configs: TrialConfigs) -> None:
        self._config, self._study, self._make, self._run_dir = config, study, configs.make, configs.run_dir
        self._models = _Models(config, study, configs.run_dir)

    def stages(self, jobs: Jobs) -> list[Stage]:
        """Returns the stages in their order; `jobs` are those of the search."""
        finds = (self._encoding_jobs, self._guard_jobs, self._mixture_jobs, self._test_jobs)
        is_needed = functools.partial(rests_on, run_dir=self._run_dir, study=self._study, config=self._config)
        on_corpus = WholeCorpusStage(
            self._whole_corpus_jobs, jobs=jobs, is_needed=is_needed, told=self._study.tell.on_whole_corpus
        )
        return [on_corpus, *(ScoringStage(find, jobs=jobs, is_needed=is_needed) for find in finds)]

    def _whole_corpus_jobs(self) -> list[TrialConfig]:
        """The finalists and the user's own settings on dev, where rungs were scored on a pool."""
        if not self._study.pool:
            return []
        known = whole_corpus(self._study.search)
        numbers = dict.fromkeys([*self._models.best(), *self._study.users])
        models = self._models.those_there([number for number in numbers if number not in known])
        return [self._make(name, params, split="dev", checkpoint=path) for name, params, path in models]

    def _encoding_jobs(self) -> list[TrialConfig]:
        """The base model on dev, encoded as each of the finalists is: what training gave is measured from there."""
        return [
            self._make(name, settings, split="dev")
            for name, settings in self._models.bases(self._models.finalists()).items()
            if settings and not (self._run_dir / TRIALS / name / scores_file("dev")).exists()
        ]

    def _guard_jobs(self) -> list[TrialConfig]:
        """The base model, also as the finalists encode, and the finalists on the guards."""
        numbers = self._models.finalists()
        bases = [(name, settings, None) for name, settings in self._models.bases(numbers).items()]
        return [
            self._make(name, params, split=None, checkpoint=checkpoint, guards=self._config.guard)
            for name, params, checkpoint in [*bases, *self._models.those_there(numbers)]
            if not self._knows(name, self._config.guard)
        ]

    def _knows(self, name: str, asked: Sequence[str]) -> bool:
        """Whether the model in RUN/trials/`name` was scored on the guards `asked`."""
        known = guards.read_scores(self._run_dir, name) or {}
        return all(task_name(guard) in known for guard in asked)

    def _mixture_jobs(self) -> list[TrialConfig]:
        """The winner mixed with the base model, on dev and guards."""
        number = self._models.winner()
        wanted = {task_name(guard) for guard in self._config.guard}
        known = guards.read_mixtures(self._run_dir, number, self._config.metric)
        if not self._config.guard or (known and wanted <= known[0].guard.keys()):
            return []
        name, params, checkpoint = self._models.one(number)
        kind: dict[str, Any] = {"checkpoint": checkpoint, "guards": self._config.guard, "alphas": guards.ALPHAS}
        return [self._make(name, params, **kind)] if checkpoint else []

    def _test_jobs(self) -> list[TrialConfig]:
        """The base model, the user's own settings and the winner, mixed if that was better, each scored once.

        The base model as it is, as the winner encodes, and with the settings that it is best used with. An earlier
        search's model, too.
        """
        winner, config = self._models.winner(), self._config
        held = (self._models.rule, self._models.own)
        mixed = selection.chosen_mixture(self._run_dir, self._study.search, winner, config.metric, *held)
        bases = self._models.bases([winner])
        settings = selection.best_settings(self._run_dir, self._study.search, config.metric, *held)
        bases[base_folder(settings)] = settings
        jobs = [self._make(name, each, split="test") for name, each in bases.items()]
        if mixed is not None:
            _, params, checkpoint = self._models.one(winner)
            name = mixture_name(winner, mixed.alpha)
            kind: dict[str, Any] = {"checkpoint": checkpoint, "alpha": mixed.alpha, "guards": self._config.guard}
            job = self._make(name, params, split="test", **kind)
            jobs.append(self._guards_of(job) if self._is_tested(job) else job)
        users = [t.number for t in self._models.trials() if t.user_attrs.get(ROLE) == USER]
        models = self._models.those_there(sorted({*users, *([winner] if mixed is None else [])}))
        jobs += [self._make(name, params, split="test", checkpoint=path) for name, params, path in models]
        jobs += self._previous_jobs()
        return [job for job in jobs if not (self._is_tested(job) and self._knows(job.name, job.guards))]

    def _previous_jobs(self) -> Iterator[TrialConfig]:
        """The model of the earlier search, where this one began with `--again` and its weights are there."""
        if self._config.again:
            earlier = earlier_model(self._config.again, self._run_dir)
            if earlier.weights and Path(earlier.weights).is_dir():
                params = {**earlier.settings, "model_name_or_path": earlier.weights}
                yield self._make(PREVIOUS_FOLDER, params, split="test", checkpoint=earlier.weights)

    def _guards_of(self, job: TrialConfig) -> TrialConfig:
        """A mixture that was saved and scored on test, on the guards alone: some may have been asked for since."""
        return replace(job, split=None, alpha=None, checkpoint=str(Path(job.directory) / CHECKPOINT))

    def _is_tested(self, job: TrialConfig) -> bool:
        folder = Path(job.directory)
        saved = job.alpha is None or (folder / CHECKPOINT).is_dir()
        return saved and (folder / scores_file("test")).exists()
