"""The time that a search was given, and what can still be done in it."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Protocol

from tuner.config import SearchConfig
from tuner.study import BASE, SAMPLED, USER

_MARGIN = 1.1  # what is kept back for a retraining must be enough when its time comes
_TESTS = 3  # the base model, the user's own settings and the winner


class Timed(Protocol):
    """A job with its times, as `tuner.jobs.Row` has them."""

    role: str
    state: str
    step: int
    steps: int
    scoring: float
    started: float
    ended: float | None


class TimeBudget:
    """Starts nothing that cannot come to something, and keeps back what the finalists and the test will need.

    Args:
        config: The search, with its `time_budget`.
        spent: Seconds that earlier processes of the same search have used.
        clock: Seconds, monotonic.
    """

    def __init__(self, config: SearchConfig, *, spent: float, clock: Callable[[], float]) -> None:
        self._config, self._clock = config, clock
        self._began = clock() - spent

    @property
    def spent(self) -> float:
        """Seconds since the search began, those between its processes left out."""
        return self._clock() - self._began

    @property
    def left(self) -> float:
        """Seconds; infinite without a budget."""
        budget = self._config.time_budget_seconds
        return math.inf if budget is None else budget - self.spent

    def allows_trial(self, rows: Iterable[Timed]) -> bool:
        """Whether a trial that starts now reaches its first rung, and leaves the finalists their time."""
        if self._config.time_budget is None:
            return True
        whole, scoring = self._longest(rows)
        return self.left > whole * self._config.rungs[0] + self._reserve(whole, scoring)

    def allows_next_rung(self, rung: int, rows: Iterable[Timed]) -> bool:
        """Whether a trial that stands at `rung` reaches the next one, and leaves the finalists their time."""
        if self._config.time_budget is None:
            return True
        whole, scoring = self._longest(rows)
        shares = {number: after - before for number, (before, after) in enumerate(pairwise(self._config.rungs), 1)}
        return self.left > whole * shares.get(rung, 0.0) + self._reserve(whole, scoring)

    def allows_retraining(self, rows: Iterable[Timed]) -> bool:
        """Whether a finalist's retraining that starts now ends, and leaves the test its time."""
        if self._config.time_budget is None:
            return True
        whole, scoring = self._longest(rows)
        return self.left >= whole + _TESTS * scoring

    def _reserve(self, whole: float, scoring: float) -> float:
        retrainings = self._config.finalist_count * self._config.finalist_seeds
        rounds = math.ceil(retrainings / self._config.concurrent_trials)
        return _MARGIN * rounds * whole + _TESTS * scoring

    def _longest(self, rows: Iterable[Timed]) -> tuple[float, float]:
        """Seconds of the longest whole training, and of scoring the base model; 0 where nothing is known yet.

        Of the base model only the scoring counts: it is the first job, and its time holds the start of the workers.
        """
        rows = list(rows)
        scoring = (row.scoring for row in rows if row.role == BASE)
        return max(self._trainings(rows), default=0.0), max(scoring, default=0.0)

    def _trainings(self, rows: Iterable[Timed]) -> Iterator[float]:
        """What whole trainings took or, from the steps that were done, would take."""
        for row in rows:
            seconds = (self._clock() if row.ended is None else row.ended) - row.started
            if row.role not in (USER, SAMPLED, "finalist"):
                continue
            if row.state == "complete":
                yield seconds
            elif row.state in ("running", "pruned") and row.step and row.steps:
                yield seconds * row.steps / row.step
