"""Draws where good settings are to be expected, before a search knows better.

A mixture in the manner of PriorBand (Mallik et al. 2023, arXiv 2306.12370): near the user's own settings, near the
middle of the ranges, near the best trial so far, or anywhere. No component is trusted alone, so that a bad guess costs
a few trials.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tuner.study.trials import GUARD_EXCESS, INFEASIBLE, ROLE, USER, rung_values, value_of

OWN, MIDDLE, BEST, EARLIER, ANYWHERE = "own", "middle", "best", "earlier", "anywhere"
SHARES: Mapping[str, float] = {OWN: 0.25, MIDDLE: 0.25, BEST: 0.25, ANYWHERE: 0.25}
"""Of the first trials."""
WARM_SHARES: Mapping[str, float] = {EARLIER: 0.6, OWN: 0.1, ANYWHERE: 0.3}
"""Of the first trials where earlier searches are known."""
LESSONS = "lessons"
"""User attribute of a study: what earlier searches found."""
_SPREAD: Mapping[str, float] = {OWN: 0.25, MIDDLE: 0.25, BEST: 0.15, EARLIER: 0.1}
"""Standard deviation of a draw around a component's centre, as a share of the range."""
_KEPT = 0.5
"""Probability that a draw near another trial keeps its category."""


class PriorSampler(BaseSampler):
    """Draws one trial from one component.

    Args:
        shares: Component -> its share of the trials.
        seed: Of this trial: the component and the draws follow from it.
        lessons: What earlier searches found.
    """

    def __init__(self, shares: Mapping[str, float], seed: int, lessons: Sequence[Mapping[str, Any]] = ()) -> None:
        self._earlier = [params for lesson in lessons for params in lesson["params"]]
        self._generator = np.random.default_rng(seed)
        self._component = str(self._generator.choice(list(shares), p=list(shares.values())))
        self._pick = int(self._generator.integers(2**31))
        """Which of several earlier trials."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return {}

    def sample_relative(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,  # noqa: ARG002
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        centre = self._centre(study).get(param_name)
        if isinstance(param_distribution, CategoricalDistribution):
            keeps = self._generator.random() < _KEPT and centre in param_distribution.choices
            drawn = param_distribution.choices[self._generator.integers(len(param_distribution.choices))]
            return centre if keeps else drawn
        assert isinstance(param_distribution, FloatDistribution | IntDistribution)
        scale = Scale(param_distribution)
        return scale.value(self._unit(0.5 if centre is None else scale.unit(centre)))

    def _centre(self, study: Study) -> Mapping[str, Any]:
        """The parameters of the trial that is drawn near; none of the middle and of anywhere."""
        if self._component == EARLIER:
            return self._earlier[self._pick % len(self._earlier)] if self._earlier else {}
        trials = study.get_trials(deepcopy=False)
        if self._component == OWN:
            return next((trial.params for trial in trials if trial.user_attrs.get(ROLE) == USER), {})
        best = leader(trials) if self._component == BEST else None
        return {} if best is None else best.params

    def _unit(self, centre: float) -> float:
        """A draw in [0, 1]: normal around `centre`, again until it is inside; or uniform."""
        if self._component == ANYWHERE:
            return float(self._generator.random())
        while True:
            drawn = self._generator.normal(centre, _SPREAD[self._component])
            if 0 <= drawn <= 1:
                return float(drawn)


class Scale:
    """Maps the values of a distribution onto [0, 1], by their logarithms where it is logarithmic."""

    def __init__(self, distribution: FloatDistribution | IntDistribution) -> None:
        self._distribution = distribution
        half = 0.5 if isinstance(distribution, IntDistribution) else 0.0
        self._low, self._high = self._inner(distribution.low - half), self._inner(distribution.high + half)

    def _inner(self, value: float) -> float:
        return math.log(value) if self._distribution.log else float(value)

    def unit(self, value: float) -> float:
        """Returns the place of `value` in the range, of one outside that of the nearer end."""
        inside = min(self._distribution.high, max(self._distribution.low, value))
        return (self._inner(inside) - self._low) / ((self._high - self._low) or 1.0)

    def value(self, unit: float) -> float | int:
        """Returns the value at a place, in whole steps where the distribution has steps."""
        inner = self._low + unit * (self._high - self._low)
        value, known = math.exp(inner) if self._distribution.log else inner, self._distribution
        if known.step is not None:
            value = known.low + round((value - known.low) / known.step) * known.step
        value = min(known.high, max(known.low, value))
        return round(value) if isinstance(known, IntDistribution) else value


def leader(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """Returns the best of the trials that came furthest: the complete ones, or those at the last rung so far.

    Of the complete ones, those that lose too much on a guard come last.
    """
    known = [trial for trial in trials if trial.params and not trial.user_attrs.get(INFEASIBLE)]
    complete = [trial for trial in known if trial.state == TrialState.COMPLETE]
    if complete:
        return max(complete, key=lambda trial: (trial.user_attrs.get(GUARD_EXCESS, 0.0) <= 0, value_of(trial)))
    reached = [trial for trial in known if rung_values(trial)]
    return max(reached, key=lambda trial: max(rung_values(trial).items()), default=None)
