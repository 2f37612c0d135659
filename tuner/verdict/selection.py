"""Which trial wins: from the study, the finalists' retrainings, and what was scored on guards.

Everything here is decided on dev and guards; the test set is not looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from tuner.run_dir.names import weights_of
from tuner.study import guards
from tuner.study.guards import Mixture
from tuner.study.study import value_of
from tuner.study.trials import GUARD_EXCESS
from tuner.verdict.statistics import lower_bound, pooled_spread


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A trial among the finalists."""

    trial: int
    """Number in the search."""
    seeds: Mapping[int, float]
    """Training seed -> objective on dev, the search's own seed first."""
    lower: float | None = None
    """One-sided 95% lower bound of the mean, from the deviation pooled over all finalists; None for a single seed."""

    @property
    def mean(self) -> float:
        """Mean objective over the seeds."""
        return float(np.mean(list(self.seeds.values())))


def finalists(study: Study, count: int, run_dir: Path | None = None) -> list[int]:
    """Returns the numbers of the best `count` trained and completed trials, best first.

    Args:
        study: The search.
        count: How many, where there are as many.
        run_dir: Where weights are: a trial that has none there any more is passed over.
    """
    trained = [trial for trial in _complete(study) if trial.user_attrs.get("role") != "base"]
    distinct = [trial for trial in trained if "duplicate_of" not in trial.user_attrs]
    numbers = [trial.number for trial in sorted(distinct, key=_rank, reverse=True)]
    return [number for number in numbers if run_dir is None or weights_of(run_dir, number).is_dir()][:count]


def _rank(trial: FrozenTrial) -> tuple[bool, float]:
    """Trials that violate the guards' constraint come last."""
    return trial.user_attrs.get(GUARD_EXCESS, -1.0) <= 0, value_of(trial)


def standings(study: Study, retrains: Study | None = None) -> list[Standing]:
    """Ranks the retrained trials by the lower bound of their mean dev score, best first.

    The bound is Student's t with the standard deviation between seeds pooled over the retrained trials: a deviation of
    two or three seeds alone is too noisy to rank by (`statistics.lower_bound`). Trials without a retraining follow, by
    their dev score: all of them where finalists were not asked for.
    """
    numbers = finalists(study, len(study.get_trials(deepcopy=False)))
    seeds = _seeds(study, numbers, retrains)
    spread = pooled_spread([list(values.values()) for values in seeds.values()])
    bounds = {
        number: lower_bound(list(values.values()), spread) if spread and len(values) > 1 else None
        for number, values in seeds.items()
    }
    ranked = [Standing(trial=number, seeds=values, lower=bounds[number]) for number, values in seeds.items()]
    return sorted(ranked, key=lambda s: (s.lower is not None, s.mean if s.lower is None else s.lower), reverse=True)


def winner(
    study: Study, retrains: Study | None = None, *, run_dir: Path | None = None, tolerance: float = 0.0
) -> int | None:
    """Returns the number of the winning trial; None when no trained trial completed.

    Args:
        study: The search.
        retrains: The finalists' retrainings, if any.
        run_dir: Where weights are and guards were scored: of those with weights, the best that keeps the guards wins,
            and the best of all where none does.
        tolerance: What a guard may lose.
    """
    ranked = [standing.trial for standing in standings(study, retrains)]
    if run_dir:
        ranked = [number for number in ranked if weights_of(run_dir, number).is_dir()] or ranked
    guarded = [number for number in ranked if run_dir and guards.read_scores(run_dir, f"{number:04d}")]
    forgetful = guards.forgetful(run_dir, guarded, tolerance) if run_dir else []
    kept = [number for number in guarded if number not in forgetful]
    return next(iter([*kept, *ranked]), None)


def chosen_mixture(run_dir: Path, study: Study, number: int, metric: str, tolerance: float) -> Mixture | None:
    """Returns the mixture of trial `number` with the base model that replaces it; None where none was better."""
    found = mixtures(run_dir, study, number, metric)
    choice = guards.choose(*found, tolerance)[0] if found else None
    return None if choice is None or choice.alpha == 1.0 else choice


def mixtures(
    run_dir: Path, study: Study, number: int, metric: str
) -> tuple[Mixture, Mixture, Sequence[Mixture]] | None:
    """Returns the base model, trial `number` itself, and the mixtures of both; None where none were scored."""
    between = guards.read_mixtures(run_dir, number, metric)
    trials = study.get_trials(deepcopy=False)
    base, trained = (_end(run_dir, trials[index], metric, alpha) for index, alpha in ((0, 0.0), (number, 1.0)))
    return (base, trained, between) if between and base and trained else None


def _end(run_dir: Path, trial: FrozenTrial, metric: str, alpha: float) -> Mixture | None:
    scores = guards.read_scores(run_dir, f"{trial.number:04d}")
    dev = trial.user_attrs.get("scores")
    return Mixture(alpha=alpha, dev=dev[metric], guard=scores, dev_all=dev) if scores and dev else None


def noise(ranked: Sequence[Standing]) -> float | None:
    """Returns the standard deviation between seeds of one trial, pooled over trials; None without retrainings."""
    spread = pooled_spread([list(standing.seeds.values()) for standing in ranked])
    return None if spread is None else spread.deviation


def ties(ranked: Sequence[Standing]) -> list[int]:
    """Returns the trials that the winner `ranked[0]` cannot be told from: means closer than the noise between seeds."""
    level = noise(ranked) or 0.0
    rivals = [standing for standing in ranked[1:] if len(standing.seeds) == len(ranked[0].seeds)]
    return [rival.trial for rival in rivals if abs(rival.mean - ranked[0].mean) <= level]


def _complete(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _seeds(study: Study, numbers: Sequence[int], retrains: Study | None) -> dict[int, dict[int, float]]:
    """Trial -> training seed -> objective on dev."""
    trials = study.get_trials(deepcopy=False)
    seeds = {number: {trials[number].user_attrs["seed"]: value_of(trials[number])} for number in numbers}
    for again in _complete(retrains) if retrains else ():
        if (source := again.user_attrs["source"]) in seeds:
            seeds[source][again.user_attrs["seed"]] = value_of(again)
    return seeds
