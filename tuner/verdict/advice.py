"""What is worth trying next, decided once: pages and the terminal put it into words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import Any

from tuner.verdict.decision import FINE_TUNE, is_certain
from tuner.verdict.result import Best, RangeEnd, Verdict

_FEW_NEGATIVES = 2
_FEW_TRIALS = 8
_TOO_FEW_QUERIES = 50
"""Below so many test queries nothing that was measured is worth following: gains below some 0.05 are lost in chance."""
_MANY = 20
"""Times as many test queries as there are, from which on no number is named."""


class Reason(IntEnum):
    """Why the base model is kept, the gravest first."""

    FORGOTTEN = 1
    """A guard lost more than it may."""
    WORSE = 2
    """The best trial is worse than the base model on test, for certain."""
    CHANCE = 3
    """The gain cannot be told from chance."""
    SETTINGS = 4
    """Other settings of the base model do as well."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One thing to try."""

    because: Reason | None = None
    """None where it does not follow from the verdict alone."""


class Step(Enum):
    """What is to be done, where nothing is to be said of it but that."""

    FORGET_LESS = auto()
    """Lose less on the guards."""
    TRAIN_MORE_GENTLY = auto()
    """Lower learning rates or fewer epochs, and a look at the data: the best is worse than the base model on test."""
    USE_SETTINGS = auto()
    """The base model with the settings that were found for it."""
    TRAIN_LONGER = auto()
    """The best trial was still rising."""
    READ_LOST_QUERIES = auto()
    """Look at the test queries that got worse."""
    MINE_NEGATIVES = auto()
    """Rows have few negatives."""
    SCORE_WITH_TEACHER = auto()
    """Rows have no teacher's scores."""
    MEND_DATA = auto()
    """The data check found something."""
    TRY_MORE_SETTINGS = auto()
    """Few settings were tried."""


@dataclass(frozen=True, kw_only=True)
class Do(Advice):
    """A step without figures."""

    step: Step


@dataclass(frozen=True, kw_only=True)
class LowerRates(Advice):
    """Lower learning rates: on dev, trials score below the base model."""

    worse: int
    trained: int
    """Trials that were scored; more than half of them are `worse`."""
    rates: Sequence[float]
    """Those that were tried; none where they were not varied."""


@dataclass(frozen=True, kw_only=True)
class MoreQueries(Advice):
    """Test queries with which a gain of this size is found."""

    gain: float
    queries: int
    """That there are."""
    needed: float | None
    """None where no gain was measured, or it is of a size that is detected."""

    @property
    def is_out_of_reach(self) -> bool:
        """Whether many times as many queries are needed."""
        return self.needed is not None and self.needed >= _MANY * self.queries


@dataclass(frozen=True, kw_only=True)
class MoreData(Advice):
    """A new search with more data: with so few test queries nothing else can be advised."""

    queries: int
    """That there are."""


@dataclass(frozen=True, kw_only=True)
class MoreTrials(Advice):
    """Go on with the search."""

    made: int
    planned: int
    """Trials that were asked for."""
    by_patience: bool = False
    """Whether ``--patience`` ended the search before they were made."""


@dataclass(frozen=True, kw_only=True)
class Widen(Advice):
    """A range, at whose end the best lies."""

    ends: Sequence[RangeEnd]


@dataclass(frozen=True, kw_only=True)
class TrainShorter(Advice):
    """The best trial was best at its first rung."""

    share: float
    """Of the training examples, at that rung."""


@dataclass(frozen=True, kw_only=True)
class LookIntoFailures(Advice):
    """Trials failed."""

    trials: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A trial that was trained, as far as advice looks at it."""

    number: int
    value: float | None
    """The objective on dev."""
    rungs: Mapping[int, float]
    """Rung, from 1 -> the objective on dev there."""
    learning_rate: float | None
    """None where it was not varied."""


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What a search has tried, and with which data."""

    base: float | None
    """The base model's objective on dev."""
    trained: Sequence[Tried]
    settings: int
    """Trials beside the base model, those that failed included."""
    failed: Sequence[int] = ()
    rungs: Sequence[float] = ()
    """Shares of the training examples at which trials were scored."""
    manifest: Mapping[str, Any] | None = field(default=None)
    """What RUN/data/manifest.json holds; None where it is not there."""


def of_verdict(result: Verdict, *, planned: int = 0, by_patience: bool = False) -> Iterator[Advice]:
    """Yields what follows from the verdict alone; nothing where fine-tuning is recommended, or nothing was trained.

    Args:
        result: The verdict.
        planned: How many trials were asked for.
        by_patience: ``--patience`` ended the search before they were made.
    """
    best = result.best
    if result.verdict == FINE_TUNE or best is None:
        return
    if best.ci95[1] < 0:
        yield Do(step=Step.TRAIN_MORE_GENTLY, because=Reason.WORSE)
    else:
        yield from _of_chance(best, result, planned, by_patience=by_patience)
    if result.guard is not None and result.guard.lost:
        yield Do(step=Step.FORGET_LESS, because=Reason.FORGOTTEN)
    if is_certain(best) and result.recommended is not None and result.recommended.settings:
        yield Do(step=Step.USE_SETTINGS, because=Reason.SETTINGS)


def of_search(result: Verdict, searched: Searched) -> Iterator[Advice]:
    """Yields all that is worth trying, what promises most first; of a search that won, only ranges to widen."""
    ends = list(result.range_ends)
    widen = [Widen(ends=ends)] if ends else []
    if result.verdict == FINE_TUNE:
        yield from widen
        return
    advised = list(of_verdict(result))
    if any(isinstance(each, MoreData) for each in advised):
        yield from [*advised, *_of_failures(searched)]
        return
    higher = any((end.name, end.end) == ("learning_rate", "largest") for end in ends)
    yield from _of_harm(searched, higher=higher)
    yield from advised
    yield from widen
    yield from _of_length(result, searched)
    yield from _of_data(result, searched.manifest)
    if 0 < searched.settings < _FEW_TRIALS:
        yield Do(step=Step.TRY_MORE_SETTINGS)
    yield from _of_failures(searched)


def _of_chance(best: Best, result: Verdict, planned: int, *, by_patience: bool) -> Iterator[Advice]:
    because = None if is_certain(best) else Reason.CHANCE
    if because and best.queries < _TOO_FEW_QUERIES:
        yield MoreData(because=because, queries=best.queries)
        return
    is_small = 0 < best.gain < best.detectable
    needed = best.queries * (best.detectable / best.gain) ** 2 if is_small else None
    if because or is_small:
        yield MoreQueries(because=because, gain=best.gain, queries=best.queries, needed=needed)
    if because:
        made = result.trials.complete + result.trials.pruned + result.trials.failed
        yield MoreTrials(because=because, made=made, planned=planned, by_patience=by_patience)


def _of_failures(searched: Searched) -> Iterator[Advice]:
    if searched.failed:
        yield LookIntoFailures(trials=searched.failed)


def _of_harm(searched: Searched, *, higher: bool) -> Iterator[Advice]:
    """`higher`: the best learning rate lies at the upper end, so that lower ones are not what is missing."""
    base, trained = searched.base, searched.trained
    if base is None or not trained:
        return
    worse = sum(trial.value is not None and trial.value < base for trial in trained)
    if worse == len(trained) or (2 * worse > len(trained) and not higher):
        rates = [trial.learning_rate for trial in trained if trial.learning_rate is not None]
        yield LowerRates(worse=worse, trained=len(trained), rates=rates)


def _of_length(result: Verdict, searched: Searched) -> Iterator[Advice]:
    best = next((trial for trial in searched.trained if result.best and trial.number == result.best.trial), None)
    if best is None or len(best.rungs) < 2 or len(searched.rungs) < 2:
        return
    top = max(best.rungs, key=lambda rung: best.rungs[rung])
    if top == len(searched.rungs):
        yield Do(step=Step.TRAIN_LONGER)
    elif top == 1:
        yield TrainShorter(share=searched.rungs[0])


def _of_data(result: Verdict, manifest: Mapping[str, Any] | None) -> Iterator[Advice]:
    if result.queries.lost:
        yield Do(step=Step.READ_LOST_QUERIES)
    if manifest is None:
        return
    if manifest["negatives_per_row"]["median"] < _FEW_NEGATIVES:
        yield Do(step=Step.MINE_NEGATIVES)
    elif not manifest["has_scores"]:
        yield Do(step=Step.SCORE_WITH_TEACHER)
    if manifest["warnings"]:
        yield Do(step=Step.MEND_DATA)
