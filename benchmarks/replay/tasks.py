"""A recorded table as a search meets it: configurations that can be taken once, their scores, and what they cost."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from benchmarks.recorded_table import Floats, Integers, RecordedTable

FLOATS = ("learning_rate", "temperature")
SIZES = ("train_group_size", "per_device_train_batch_size")
LINEAR, LOG, CATEGORIES = "linear", "log", "categories"
"""How sizes are suggested."""
_BACKWARD = 3.0
"""Forward passes that training on a text costs: one forward, and two for its gradients."""


@dataclass(frozen=True, kw_only=True)
class ReplayTask:
    """One seed's full run of every configuration of a table."""

    name: str
    table: RecordedTable

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", _trained(self.table))

    @cached_property
    def runs(self) -> Integers:
        """(C,): the run that stands for a configuration, the first full one."""
        rows = self.table.rows()
        return np.array([rows[self.table.config[rows] == config][0] for config in range(self.configs)])

    @property
    def configs(self) -> int:
        """Configurations in the table."""
        return len(self.table.learning_rate)

    @property
    def fractions(self) -> Floats:
        """(F,): shares of the examples at which there are scores."""
        return self.table.fractions

    @cached_property
    def dev(self) -> Floats:
        """(C, F): means over the queries of dev; NaN where a configuration diverged."""
        return self.table.means("dev")[self.runs]

    @cached_property
    def test(self) -> Floats:
        """(C, F): means over the queries of test."""
        return self.table.means("test")[self.runs]

    @cached_property
    def dev_queries(self) -> Floats:
        """(C, F, Qd), float64."""
        return self.table.dev[self.runs].astype(np.float64)

    @property
    def base_dev(self) -> float:
        """The model before training, on dev."""
        return float(self.table.base_dev.mean(dtype=np.float64))

    @property
    def base_test(self) -> float:
        """The model before training, on test."""
        return float(self.table.base_test.mean(dtype=np.float64))

    @cached_property
    def best(self) -> tuple[float, float]:
        """The highest mean of dev, and of test, of all configurations at all fractions."""
        return float(np.nanmax(self.dev)), float(np.nanmax(self.test))

    @cached_property
    def scoring(self) -> float:
        """What one scoring of dev costs, in full trainings: texts encoded, a text of a training counted threefold."""
        meta = self.table.meta
        texts = float(meta["rows"]) * float(meta["epochs"]) * (1 + float(self.table.train_group_size.mean()))
        return (float(meta["passages"]) + len(self.table.base_dev)) / (_BACKWARD * texts)

    def arguments(self, config: int) -> dict[str, Any]:
        """What configuration `config` sets."""
        return self.table.arguments(config)

    @cached_property
    def by_arguments(self) -> Mapping[tuple[Any, ...], int]:
        """Values, in the order of `names`, -> configuration."""
        return {tuple(self.arguments(config)[name] for name in self.names): config for config in range(self.configs)}

    @property
    def names(self) -> tuple[str, ...]:
        """What is searched."""
        return (*FLOATS, *SIZES)

    @cached_property
    def unit(self) -> Floats:
        """(C, 4): the configurations in the cube of their ranges' logarithms."""
        unit: Floats = (self._logs - self._logs.min(axis=0)) / np.ptp(self._logs, axis=0)
        return unit

    @cached_property
    def _logs(self) -> Floats:
        logs: Floats = np.log([getattr(self.table, name) for name in self.names]).T
        return logs

    def distributions(self, sizes: str = LINEAR, own: Mapping[str, Any] | None = None) -> dict[str, BaseDistribution]:
        """The table's ranges as a search space.

        Args:
            sizes: How group and batch are suggested: whole numbers on a linear or a log scale, or categories (powers of
                2, and the user's `own`).
            own: The user's own settings.
        """
        space: dict[str, BaseDistribution] = {}
        for name in FLOATS:
            values = getattr(self.table, name)
            space[name] = FloatDistribution(float(values.min()), float(values.max()), log=True)
        for name in SIZES:
            low, high = (int(end) for end in (getattr(self.table, name).min(), getattr(self.table, name).max()))
            powers = [2**power for power in range(10) if low <= 2**power <= high]
            choices = sorted({*powers, int((own or {}).get(name, powers[0]))})
            whole = IntDistribution(low, high, log=sizes == LOG)
            space[name] = CategoricalDistribution(choices) if sizes == CATEGORIES else whole
        return space

    def nearest(self, arguments: Mapping[str, Any], taken: Collection[int]) -> int:
        """Returns the configuration nearest to `arguments` that is not `taken`.

        Raises:
            Exhausted: All are.
        """
        free = np.array([config for config in range(self.configs) if config not in taken])
        if not len(free):
            raise Exhausted
        point = (np.log([arguments[name] for name in self.names]) - self._logs.min(axis=0)) / np.ptp(self._logs, axis=0)
        return int(free[np.argmin(((self.unit[free] - point) ** 2).sum(axis=1))])


def _trained(table: RecordedTable) -> RecordedTable:
    """Returns `table` without the configurations that no full run was made of."""
    known = np.unique(table.config[table.rows()])
    runs = np.isin(table.config, known)
    of_runs = {name: getattr(table, name)[runs] for name in ("seed", "budget", "schedule", "dev", "test")}
    of_configs = {name: getattr(table, name)[known] for name in (*FLOATS, *SIZES)}
    return replace(table, **of_runs, **of_configs, config=np.searchsorted(known, table.config[runs]))


class Exhausted(Exception):  # noqa: N818
    """Every configuration of the table was taken."""


@dataclass(kw_only=True)
class Trace:
    """What one search had found, by what it had cost."""

    task: ReplayTask
    trained: float = 0.0
    """In full trainings."""
    scored: int = 0
    """Scorings of dev."""
    found: list[tuple[float, float, float]] = field(default_factory=list)
    """(cost in full trainings, regret on dev, regret on test) at the start and whenever the best so far changes."""
    _best: float = -np.inf

    def __post_init__(self) -> None:
        self._note(self.task.base_dev, self.task.base_test)

    @property
    def cost(self) -> float:
        """Full trainings, scorings included."""
        return self.trained + self.scored * self.task.scoring

    def spend(self, trained: float) -> None:
        """A trial came to its next rung, and was scored there."""
        self.trained += trained
        self.scored += 1

    def complete(self, config: int, rungs: Sequence[int]) -> float:
        """A trial ended, scored at `rungs`: its best is its value, and the search's if it is the highest so far."""
        values = np.nan_to_num(self.task.dev[config, list(rungs)], nan=0.0)
        best = rungs[int(np.argmax(values))]
        value = float(values.max())
        if value > self._best and value > 0:
            self._best = value
            self._note(value, float(self.task.test[config, best]))
        return value

    def _note(self, dev: float, test: float) -> None:
        self.found.append((self.cost, self.task.best[0] - dev, self.task.best[1] - test))

    def regret_at(self, costs: Floats) -> tuple[Floats, Floats]:
        """Regret on dev and on test at each of `costs`."""
        steps = np.array(self.found)
        rows = np.searchsorted(steps[:, 0], costs, side="right") - 1
        return steps[rows, 1], steps[rows, 2]
