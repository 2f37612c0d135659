"""What ``--sampler`` takes: Optuna's samplers, made anew for each trial.

Suggestions are a function of (seed, trial number, history) alone, so that a resumed search goes on as an unbroken one.
CMA-ES is not among them: Optuna keeps its state in the study as a pickle, which a resume would have to read.
"""

import copy
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from tuner.study.priors import BEST, SHARES, WARM_SHARES, PriorSampler
from tuner.study.strategy import Strategy
from tuner.study.trials import BASE, GUARD_EXCESS, INFEASIBLE, ROLE, is_paused


def sampler_names() -> list[str]:
    """What ``--sampler`` takes."""
    return sorted(_SAMPLERS)


def make_sampler(
    strategy: Strategy, *, seed: int, number: int, trials: int, lessons: Sequence[Mapping[str, Any]] = ()
) -> BaseSampler:
    """Returns the sampler of `strategy` for trial `number` of a search of `trials`, that knows of earlier `lessons`."""
    ask = _Ask(strategy=strategy, seed=seed, number=number, trials=trials, lessons=lessons)
    return _OfTrials(_SAMPLERS[strategy.sampler](ask), extrapolates=strategy.extrapolate)


def draw_again(sampler: BaseSampler, trial: Trial, known: FrozenTrial) -> None:
    """Draws what the `known` part of a trial was drawn as, so that the rest is what an unbroken search had drawn.

    Args:
        sampler: Made anew for the trial.
        trial: The trial, taken up again.
        known: What is stored of it: its process may have been killed between two of its parameters.
    """
    for name, distribution in known.distributions.items():
        if name not in trial.relative_params:
            sampler.sample_independent(trial.study, known, name, distribution)


def constrain(trial: Trial, name: str, value: float) -> None:
    """Tells samplers to stay away from `trial` where `value` is above 0; told again, it is as it was."""
    if name not in trial.constraints:
        trial.set_constraint(name, value)


class _OfTrials(BaseSampler):
    """A sampler that sees neither the base model, which has no parameters and would empty the space that is inferred,
    nor the trial itself, which may have some from before a kill.
    """

    def __init__(self, inner: BaseSampler, *, extrapolates: bool) -> None:
        self._inner, self._extrapolates = inner, extrapolates

    def _seen(self, study: Study, trial: FrozenTrial) -> Study:
        return _Others(study, trial.number, extrapolates=self._extrapolates)  # type: ignore[return-value]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(self._seen(study, trial), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner.sample_relative(self._seen(study, trial), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(self._seen(study, trial), trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(self._seen(study, trial), trial)


class _Others:
    def __init__(self, study: Study, number: int, *, extrapolates: bool) -> None:
        self._study, self._number, self._extrapolates = study, number, extrapolates

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, **options: Any
    ) -> list[FrozenTrial]:
        trials = self._of(self._study._get_trials(deepcopy, **options))
        return [trial for trial in trials if states is None or trial.state in states]

    def _of(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        seen = [
            as_ended(trial) for trial in trials if trial.user_attrs.get(ROLE) != BASE and trial.number != self._number
        ]
        return extrapolated(seen) if self._extrapolates and not self._study._is_multi_objective() else seen


def as_ended(trial: FrozenTrial) -> FrozenTrial:
    """Returns a paused trial as a pruned one: its scores are known, and it may never go on."""
    if not is_paused(trial):
        return trial
    seen = copy.copy(trial)
    seen.state = TrialState.PRUNED
    return seen


def extrapolated(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Returns `trials`, the stopped ones as if they had gone on as the complete ones did, on average.

    TPE takes a stopped trial for worse than every complete one, and the GP does not see it.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if any(GUARD_EXCESS in trial.user_attrs for trial in complete):
        return list(trials)  # the GP wants constraints of every trial that it sees
    return [_extrapolated(trial, complete) for trial in trials]


def _extrapolated(trial: FrozenTrial, complete: Sequence[FrozenTrial]) -> FrozenTrial:
    if trial.state != TrialState.PRUNED or not trial.intermediate_values or trial.user_attrs.get(INFEASIBLE):
        return trial
    rung = max(trial.intermediate_values)
    gains = [t.values[0] - t.intermediate_values[rung] for t in complete if rung in t.intermediate_values]
    gain = sum(gains) / len(gains) if gains else 0.0
    seen = copy.copy(trial)
    seen.state, seen.values = TrialState.COMPLETE, [trial.intermediate_values[rung] + gain]
    return seen


class _QMC(QMCSampler):
    """Takes the point of the trial's number; Optuna's counter in the study would pass over one with each restart."""

    def __init__(self, seed: int, number: int, mixed: int) -> None:
        independent = RandomSampler(seed=mixed)
        super().__init__(seed=seed, scramble=True, independent_sampler=independent, warn_independent_sampling=False)
        self._number = number

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:  # noqa: ARG002
        return self._number


@dataclass(frozen=True, kw_only=True)
class _Ask:
    """For which trial a sampler is made."""

    strategy: Strategy
    seed: int
    number: int
    trials: int
    lessons: Sequence[Mapping[str, Any]]
    """What earlier searches found."""

    @property
    def mixed(self) -> int:
        """A seed of this trial's own."""
        return (self.seed * 1_000_003 + self.number) % 2**32

    @property
    def startup(self) -> int:
        """Finished trials before a model is asked; the base model is none of them."""
        return self.strategy.startup(self.trials)


class _Started(BaseSampler):
    """Draws from one sampler until enough trials have ended, and from another one then."""

    def __init__(self, first: BaseSampler, then: BaseSampler, startup: int) -> None:
        self._first, self._then, self._startup = first, then, startup

    def _now(self, study: Study) -> BaseSampler:
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return self._first if len(ended) < self._startup else self._then

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._now(study).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._now(study).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._now(study).sample_independent(study, trial, param_name, param_distribution)


def _tpe(ask: _Ask) -> BaseSampler:
    return TPESampler(seed=ask.mixed, multivariate=True, group=True, constant_liar=True, n_startup_trials=ask.startup)


def _gp(ask: _Ask) -> BaseSampler:
    return GPSampler(seed=ask.mixed, n_startup_trials=ask.startup)


def _from_priors(model: BaseSampler, ask: _Ask) -> BaseSampler:
    """`model`, its first trials and some of the later ones drawn from priors, where the strategy says so."""
    strategy = ask.strategy
    # a stream of its own: the prior's first draw chooses its component, from the same seed
    if np.random.default_rng([ask.mixed, 1]).random() < strategy.exploit:
        return PriorSampler({BEST: 1.0}, ask.mixed)
    if not strategy.prior and not ask.lessons:
        return model
    prior = PriorSampler(WARM_SHARES if ask.lessons else SHARES, ask.mixed, ask.lessons)
    return _Started(prior, model, ask.startup)


_SAMPLERS: Mapping[str, Callable[[_Ask], BaseSampler]] = {
    "tpe": lambda ask: _from_priors(_tpe(ask), ask),
    "random": lambda ask: RandomSampler(seed=ask.mixed),
    "qmc": lambda ask: _QMC(ask.seed, ask.number, ask.mixed),
    "gp": lambda ask: _from_priors(_gp(ask), ask),
}
