"""Whether the search would have gone further, had it been let: a choice at an end of its range."""

import math
from collections.abc import Iterator

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from tuner.study.trials import ROLE, USER
from tuner.verdict.result import RangeEnd

_NEAR = 0.02
"""Share of a range, on its scale, that counts as its end."""
_FEWEST = 5
"""Values of a range from which on its ends say something."""


def range_ends(trial: FrozenTrial) -> list[RangeEnd]:
    """Returns the parameters of a trial that lie at an end of their range; none for the user's own settings.

    Only ends that can be widened count: no number of passages or rows is below 1, no share below 0.
    """
    if trial.user_attrs.get(ROLE) == USER:
        return []
    return [end for name, given in trial.distributions.items() for end in _ends(name, trial.params[name], given)]


def _ends(name: str, value: float, given: BaseDistribution) -> Iterator[RangeEnd]:
    if not isinstance(given, IntDistribution | FloatDistribution) or given.high <= given.low:
        return
    if given.step and (given.high - given.low) / given.step + 1 < _FEWEST:
        return
    place = _place(value, given.low, given.high, log=given.log)
    natural = 1 if isinstance(given, IntDistribution) else 0
    if place >= 1 - _NEAR:
        yield RangeEnd(name=name, value=value, end="largest", limit=given.high)
    elif place <= _NEAR and given.low > natural:
        yield RangeEnd(name=name, value=value, end="smallest", limit=given.low)


def _place(value: float, low: float, high: float, *, log: bool) -> float:
    """Where a value lies in its range, from 0 to 1."""
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)
