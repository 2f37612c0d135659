"""The time that a search was given, and what can still be done in it."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from optuna.trial import FrozenTrial, TrialState

from tuner.request.config import SearchConfig
from tuner.study.guards import ALPHAS
from tuner.study.trials import BASE, ROLE, SAMPLED, SECONDS, SOURCE

_MARGIN = 1.1  # what is kept back for a retraining must be enough when its time comes
_TELLING = 0.05  # share of the steps after which their pace tells how long all of them take
_TESTED = 3  # the base model, the user's own settings and the winner
_PASSES_OF_ALL_HEADS = 3  # mteb's of the dense head, dev's for the hybrid weights, and the other heads'


def final_scorings(config: SearchConfig, *, pooled: bool = False) -> int:
    """Returns how many scorings of dev on the whole corpus the end takes: finalists, test, guards and mixtures.

    A guard is taken for another dev.

    Args:
        config: The search.
        pooled: Rungs are scored on a pool, so that finalists, their retrainings and the user's settings are scored on
            dev once more.
    """
    tests = whole_corpus_scorings(config) if pooled else 0
    tests += _TESTED * (_PASSES_OF_ALL_HEADS if config.arguments.get("unified_finetuning") else 1)
    guards = len(config.guard)
    if not guards:
        return tests
    models = 1 + max(1, config.finalist_count) + 1  # the base model, finalists and the chosen mixture
    return tests + models * guards + len(ALPHAS) * (1 + guards)


def whole_corpus_scorings(config: SearchConfig) -> int:
    """Returns how many trials and retrainings are scored on dev's whole corpus where rungs are scored on a pool."""
    return max(1, config.finalist_count) + 1 + config.finalist_count * config.finalist_seeds


class Timed(Protocol):
    """A job with its times, as `tuner.schedule.jobs.Row` has them."""

    state: str
    step: int
    steps: int
    first_step: tuple[float, int] | None


class TimeBudget:
    """Starts nothing that cannot come to something, and keeps back what the finalists and the test will need.

    Args:
        config: The search, with its `time_budget`.
        spent: Seconds that earlier processes of the same search have used.
        told: The study's trials and retrainings, which know what earlier processes took for them.
        clock: Seconds, monotonic.
        pooled: Whether rungs are scored on a pool.
    """

    def __init__(
        self,
        config: SearchConfig,
        *,
        spent: float,
        told: Callable[[], Iterable[FrozenTrial]],
        clock: Callable[[], float],
        pooled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config, self._told, self._clock, self._pooled = config, told, clock, pooled
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
        return self.left > self._next(rows)

    def allows_next_rung(self, rung: int, rows: Iterable[Timed]) -> bool:
        """Whether a trial that stands at `rung` reaches the next one, and leaves the finalists their time."""
        if self._config.time_budget is None or rung >= len(self._config.rungs):
            return True
        return self.left > self._needed(rung, rows)

    def allows_retraining(self, rows: Iterable[Timed]) -> bool:
        """Whether a finalist's retraining that starts now ends, and leaves the test its time."""
        if self._config.time_budget is None:
            return True
        whole, scoring = self._longest(rows)
        return self.left >= whole + final_scorings(self._config, pooled=self._pooled()) * scoring

    def shortage(self, rows: Iterable[Timed]) -> str:
        """Says why no trial may start."""
        left = max(0.0, self.left)
        return f"the next one, the finalists and the test need {self._next(rows):.0f} s, and {left:.0f} s are left"

    def remedy(self, rows: Iterable[Timed]) -> str:
        """Says how much time would do for one more trial: what is used counts."""
        enough = math.ceil(round(_MARGIN * (self.spent + self._next(rows)), 3))
        return f"raise --time_budget, to {enough}s or more; the {self.spent:.0f} s that are used count"

    def _next(self, rows: Iterable[Timed]) -> float:
        rows = list(rows)
        return self._needed(0, rows) + self._promotion(rows)

    def _needed(self, rung: int, rows: Iterable[Timed]) -> float:
        whole, scoring = self._longest(rows)
        before, after = (0.0, *self._config.rungs)[rung : rung + 2]
        return whole * (after - before) + self._reserve(whole, scoring)

    def _promotion(self, rows: Iterable[Timed]) -> float:
        """What the best of the paused trials will need to come to its end, while none has."""
        ended = any(_is_sampled(trial) and trial.state == TrialState.COMPLETE for trial in self._told())
        return 0.0 if ended or self._config.pruner != "promotion" else self._longest(rows)[0]

    def _reserve(self, whole: float, scoring: float) -> float:
        retrainings = self._config.finalist_count * self._config.finalist_seeds
        rounds = math.ceil(retrainings / self._config.concurrent_trials)
        return _MARGIN * rounds * whole + final_scorings(self._config, pooled=self._pooled()) * scoring

    def _longest(self, rows: Iterable[Timed]) -> tuple[float, float]:
        """Seconds of the longest whole training, and of scoring the base model; 0 where nothing is known yet.

        Of the base model only the scoring counts: it is the first job, and its time holds the start of the workers.
        """
        told = list(self._told())
        scorings = [_seconds(trial)["scoring"] for trial in told if _is_base(trial) and _seconds(trial)]
        return max([*self._trainings(rows), *self._trainings_told(told)], default=0.0), max(scorings, default=0.0)

    def _trainings_told(self, trials: Iterable[FrozenTrial]) -> Iterator[float]:
        """What whole trainings took or, from the rung that was reached, would take, by their workers' clocks."""
        fractions = dict(enumerate(self._config.rungs, 1))
        for trial in trials:
            rung = max(trial.intermediate_values, default=0)
            share = 1.0 if trial.state == TrialState.COMPLETE else fractions.get(rung)
            if share is not None and not _is_base(trial):
                yield sum(_seconds(trial).values()) / share

    def _trainings(self, rows: Iterable[Timed]) -> Iterator[float]:
        """What the running trainings would take at the pace of their steps, whatever came before the first of them."""
        for row in rows:
            if row.state == "running" and row.first_step is not None:
                since, first = row.first_step
                done = row.step - first
                if done >= _TELLING * row.steps:
                    yield (self._clock() - since) * row.steps / done


def _is_base(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get(ROLE) == BASE


def _is_sampled(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get(ROLE, SAMPLED) == SAMPLED and SOURCE not in trial.user_attrs


def _seconds(trial: FrozenTrial) -> Mapping[str, float]:
    return trial.user_attrs.get(SECONDS) or {}
