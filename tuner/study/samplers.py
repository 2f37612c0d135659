"""What ``--sampler`` takes: Optuna's samplers, made anew for each trial.

Suggestions are a function of (seed, trial number, history) alone, so that a resumed search goes on as an unbroken one.
CMA-ES is not among them: Optuna keeps its state in the study as a pickle, which a resume would have to read.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from tuner.study.trials import BASE, GUARD_EXCESS, INFEASIBLE, ROLE


def sampler_names() -> list[str]:
    """What ``--sampler`` takes."""
    return sorted(_SAMPLERS)


def make_sampler(name: str, *, seed: int, number: int, trials: int) -> BaseSampler:
    """Returns the sampler `name` for trial `number` of a search of `trials`."""
    mixed = (seed * 1_000_003 + number) % 2**32
    return _OfTrials(_SAMPLERS[name](seed, number, mixed, trials))


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


def constraints(trial: FrozenTrial) -> Sequence[float]:
    """Above 0 where the trial did not fit the device, diverged, or lost more on a guard than it may: stay away."""
    return (1.0 if trial.user_attrs.get(INFEASIBLE) else -1.0, trial.user_attrs.get(GUARD_EXCESS, -1.0))


class _OfTrials(BaseSampler):
    """A sampler that sees neither the base model, which has no parameters and would empty the space that is inferred,
    nor the trial itself, which may have some from before a kill.
    """

    def __init__(self, inner: BaseSampler) -> None:
        self._inner = inner

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(_seen_by(trial, study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner.sample_relative(_seen_by(trial, study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(_seen_by(trial, study), trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(_seen_by(trial, study), trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._inner.after_trial(_seen_by(trial, study), trial, state, values)


class _Others:
    def __init__(self, study: Study, number: int) -> None:
        self._study, self._number = study, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, *how: Any, **options: Any) -> list[FrozenTrial]:
        return self._of(self._study.get_trials(*how, **options))

    def _get_trials(self, *how: Any, **options: Any) -> list[FrozenTrial]:
        return self._of(self._study._get_trials(*how, **options))

    def _of(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        return [trial for trial in trials if trial.user_attrs.get(ROLE) != BASE and trial.number != self._number]


def _seen_by(trial: FrozenTrial, study: Study) -> Study:
    return _Others(study, trial.number)  # type: ignore[return-value]


class _QMC(QMCSampler):
    """Takes the point of the trial's number; Optuna's counter in the study would pass over one with each restart."""

    def __init__(self, seed: int, number: int, mixed: int) -> None:
        independent = RandomSampler(seed=mixed)
        super().__init__(seed=seed, scramble=True, independent_sampler=independent, warn_independent_sampling=False)
        self._number = number

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:  # noqa: ARG002
        return self._number


def _tpe(mixed: int, trials: int) -> BaseSampler:
    """TPE: a random start of a third of the trials, at most Optuna's own 10, of which the base model is one."""
    return TPESampler(
        seed=mixed,
        multivariate=True,
        group=True,
        constant_liar=True,
        n_startup_trials=max(3, min(10, trials // 3)) - 1,
        constraints_func=constraints,
    )


_SAMPLERS: Mapping[str, Callable[[int, int, int, int], BaseSampler]] = {
    "tpe": lambda _seed, _number, mixed, trials: _tpe(mixed, trials),
    "random": lambda _seed, _number, mixed, _trials: RandomSampler(seed=mixed),
    "qmc": lambda seed, number, mixed, _trials: _QMC(seed, number, mixed),
    "gp": lambda _seed, _number, mixed, _trials: GPSampler(seed=mixed, constraints_func=constraints),
}
