"""What ``--pruner`` takes: who goes on at a rung, at once or once there are enough to compare it with.

Optuna's successive halving knows rungs at powers of its reduction factor alone, counted in steps; ours are whatever
``--rungs`` says, counted from 1. Every pruner is asked once a trial and rung, and answers from the study alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from tuner.run_dir.names import trial_name
from tuner.study.strategy import Strategy
from tuner.study.trials import PAUSED, PROMOTED, USER, arguments_of, has_failed, is_paused, role_of


class HalvingPruner(BasePruner):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), with rungs counted from 1.

    A trial goes on where it is among the best 1/`reduction_factor` of all that have come to its rung; among the first
    few, where it is the best.
    """

    def __init__(self, reduction_factor: int) -> None:
        self._reduction_factor = reduction_factor

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether `trial` stops at the rung that it has reported last."""
        return not self.promotes(study, trial, least=1)

    def promotes(self, study: Study, trial: FrozenTrial, *, least: int) -> bool:
        """Whether `trial` is among those that may go on from its last rung, at least `least` of all that came there."""
        rung = max(trial.intermediate_values)
        own = trial.intermediate_values[rung]
        values = [own, *(other.intermediate_values[rung] for other in _rivals(study, trial, rung))]
        places = max(least, len(values) // self._reduction_factor)
        return places > 0 and own >= sorted(values, reverse=True)[places - 1]


class PausingPruner(HalvingPruner):
    """Successive halving that waits: no trial goes on before there are enough to tell that it is worth it."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether `trial` is paused at the rung that it has reported last."""
        return not self.promotes(study, trial, least=0)


def _rivals(study: Study, trial: FrozenTrial, rung: int) -> list[FrozenTrial]:
    """Returns the other suggestions that have come to `rung` and did not fail after it.

    The base model never comes there, the user's settings always.
    """
    others = (each for each in study.get_trials(deepcopy=False) if each.number != trial.number)
    suggested = (each for each in others if rung in each.intermediate_values and role_of(each) != USER)
    return [each for each in suggested if not has_failed(each)]


class PausedTrials:
    """Trials that stand at a rung and may be promoted: to Optuna, they are running.

    Args:
        study: The search.
    """

    def __init__(self, study: Study) -> None:
        self._study = study

    @property
    def all(self) -> list[FrozenTrial]:
        """Those at the latest rung first and the best of it."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return sorted((trial for trial in running if is_paused(trial)), key=_standing, reverse=True)

    @property
    def are_kept(self) -> bool:
        """Whether a trial that is stopped at a rung may be taken up again."""
        return isinstance(self._study.pruner, PausingPruner) and len(self._study.directions) == 1

    def promote(self, *, closing: bool) -> tuple[Trial, dict[str, Any]] | None:
        """Takes up a trial that may go on by now; None where there is none.

        Args:
            closing: Nothing else is to come, so that the best at each rung goes on, however few there are.
        """
        pruner = self._study.pruner
        if not isinstance(pruner, PausingPruner):
            return None
        for known in self.all:
            if pruner.promotes(self._study, known, least=int(closing)):
                trial = Trial(self._study, known._trial_id)
                trial.set_user_attr(PROMOTED, known.user_attrs[PAUSED])
                trial.set_user_attr(PAUSED, 0)
                return trial, arguments_of(known)
        return None

    def stop(self) -> None:
        """Ends those that wait to be promoted: the search is over."""
        for known in self.all:
            self._study.tell(known.number, state=TrialState.PRUNED)

    @property
    def next_names(self) -> set[str]:
        """Folders of those that are promoted next, one a rung: others are trained from their start."""
        best = {trial.user_attrs[PAUSED]: trial for trial in reversed(self.all)}
        return {trial_name(trial.number) for trial in best.values()}


def _standing(trial: FrozenTrial) -> tuple[int, float]:
    rung = trial.user_attrs[PAUSED]
    return rung, trial.intermediate_values[rung]


_PRUNERS: Mapping[str, Callable[[Strategy], BasePruner]] = {
    "successive_halving": lambda strategy: HalvingPruner(strategy.reduction_factor),
    "promotion": lambda strategy: PausingPruner(strategy.reduction_factor),
    "hyperband": lambda _: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=4, reduction_factor=2),
    "median": lambda _: optuna.pruners.MedianPruner(n_startup_trials=3),
    "none": lambda _: optuna.pruners.NopPruner(),
}


def pruner_names() -> list[str]:
    """What ``--pruner`` takes."""
    return sorted(_PRUNERS)


def make_pruner(strategy: Strategy) -> BasePruner:
    """Returns the pruner that `strategy` names."""
    return _PRUNERS[strategy.pruner](strategy)
