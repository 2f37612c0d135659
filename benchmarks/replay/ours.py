"""Replays a search through the product's own study and agenda; only the training is read off a table."""

import contextlib
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import InMemoryStorage

from benchmarks.replay.tasks import Exhausted, ReplayTask, Trace
from search_spaces.context import Context, SearchSpace
from trainables.config import Progress, Report, RungReport, Train, TrialConfig
from trainables.failures import NonFiniteScore
from trainables.scoring.measures import packed
from tuner.cluster.executor import run_in_process
from tuner.interrupts import Interrupted
from tuner.request.config import SearchConfig
from tuner.schedule.agenda import Agenda
from tuner.schedule.jobs import TrialConfigs
from tuner.study.strategy import Strategy
from tuner.study.study import SearchStudy

_MEMORY = Path("/dev/shm")


class _Spent(Interrupted):
    """The search has cost what it may."""

    def __init__(self) -> None:
        super().__init__(0)


def replay_ours(
    task: ReplayTask,
    strategy: Strategy,
    *,
    rungs: tuple[float, ...],
    sizes: str,
    user: int,
    seed: int,
    most: float = math.inf,
    trials: int | None = None,
    restarts: bool = False,
) -> Trace:
    """Searches `task` until it has cost `most` full trainings, or has come to its end.

    Args:
        task: What is searched.
        strategy: How.
        rungs: The ladder, of fractions that the table has.
        sizes: How sizes are suggested, as `ReplayTask.distributions` takes it.
        user: The configuration of the user's own settings, trial 1.
        seed: Of the search.
        most: Full trainings, scorings included.
        trials: How many the search is planned with, the base model counted as one. None: all of the table.
        restarts: Whether a promoted trial is trained from its start, as where its state was not kept.
    """
    trace, taken = Trace(task=task), set[int]()
    space = snapping(task, task.distributions(sizes, own=task.arguments(user)), taken)
    planned = task.configs + 1 if trials is None else trials
    config = SearchConfig(num_trials=planned, rungs=rungs, finalists=0, keep_checkpoints=0, seed=seed)
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        study = SearchStudy(
            InMemoryStorage(),
            config,
            space=space,
            context=Context(rows=10**9, negatives=10**9, start=task.arguments(user)),
            strategy=strategy,
        )
        agenda = Agenda(study, TrialConfigs(search=config, run_dir=Path(folder), arguments={}, eval_data=folder))
        with contextlib.suppress(_Spent, Exhausted):
            run_in_process(agenda, _Reader(task, trace, most, restarts=restarts).train)
    return trace


def snapping(task: ReplayTask, distributions: Mapping[str, BaseDistribution], taken: set[int]) -> SearchSpace:
    """Returns a space whose suggestions become the nearest configuration that was not taken, in the study as well.

    The sampler then learns where the score was measured, not where it had asked for one.
    """

    def space(trial: optuna.Trial, context: Context) -> dict[str, Any]:  # noqa: ARG001
        asked = {name: trial._suggest(name, distribution) for name, distribution in distributions.items()}
        config = task.nearest(asked, taken)
        taken.add(config)
        return snap(trial, task.arguments(config), distributions)

    return space


def snap(
    trial: optuna.Trial, arguments: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> dict[str, Any]:
    """Writes `arguments` over what was suggested for `trial`."""
    storage = trial.storage
    for name, distribution in distributions.items():
        value = arguments[name]
        if isinstance(distribution, CategoricalDistribution):
            value = min(distribution.choices, key=lambda choice: abs(math.log(choice / arguments[name])))
        storage.set_trial_param(trial._trial_id, name, distribution.to_internal_repr(value), distribution)
    trial._cached_frozen_trial = storage.get_trial(trial._trial_id)
    return dict(arguments)


class _Reader:
    """A train function that reads a table; trials that are stopped and taken up again go on where they were."""

    def __init__(self, task: ReplayTask, trace: Trace, most: float, *, restarts: bool) -> None:
        self._task, self._trace, self._most, self._restarts = task, trace, most, restarts
        self._columns = {round(float(fraction), 6): index for index, fraction in enumerate(task.fractions)}
        self._reached: dict[str, int] = {}

    @property
    def train(self) -> Train:
        return self._train

    def _train(self, job: TrialConfig, report: Report, progress: Progress) -> None:  # noqa: ARG002
        if not job.rungs:
            report(_report(rung=0, fraction=0.0, value=self._task.base_dev, last=True))
            if job.split == "test":
                raise _Spent
            return
        config = self._task.by_arguments[tuple(job.arguments[name] for name in self._task.names)]
        columns = [self._columns[round(fraction, 6)] for fraction in job.rungs]
        before = 0.0
        for rung, (fraction, column) in enumerate(zip(job.rungs, columns, strict=True), start=1):
            if self._restarts or rung > self._reached.get(job.name, 0):
                self._trace.spend(fraction - before)
                self._reached[job.name] = rung
            before = fraction
            if self._trace.cost > self._most:
                raise _Spent
            value = self._task.dev[config, column]
            if np.isnan(value):
                raise NonFiniteScore(f"trial {job.name} diverged")
            queries = packed(self._task.dev_queries[config, column])
            last = rung == len(columns)
            if not report(_report(rung=rung, fraction=fraction, value=float(value), last=last, queries=queries)):
                return
        self._trace.complete(config, columns)


def _report(*, rung: int, fraction: float, value: float, last: bool, queries: str = "") -> RungReport:
    return RungReport(
        rung=rung, fraction=fraction, step=rung, examples=0, loss=None, value=value, scores={}, last=last,
        queries=queries,
    )  # fmt: skip
