"""Which trial wins: from the study, the finalists' retrainings, and what was scored on guards.

Everything here is decided on dev and guards; the test set is not looked at.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from trainables.names import scores_file
from trainables.scoring.measures import Scores
from tuner.run_dir.names import BASE_FOLDER, trial_name, trial_path, weights_of
from tuner.study import guards
from tuner.study.guards import UNGUARDED, GuardRule, GuardScores, Mixture
from tuner.study.trials import (
    BASE,
    DUPLICATE_OF,
    GUARD_SCORES,
    POOL,
    ROLE,
    SCORES,
    SEED,
    SOURCE,
    arguments_of,
    dev_scores,
    value_of,
    whole_corpus,
)
from tuner.verdict.encoding import base_folder, settings_of
from tuner.verdict.statistics import lower_bound, pooled_spread


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A trial among the finalists."""

    trial: int
    """Number in the search."""
    seeds: Mapping[int, float]
    """Training seed -> objective on dev, the search's own seed first."""
    whole_corpus: bool = True
    """Whether that is on the whole corpus, and not on a pool of its passages."""
    lower: float | None = None
    """One-sided 95% lower bound of the mean, from the deviation pooled over all finalists; None for a single seed."""

    @property
    def mean(self) -> float:
        """Mean objective over the seeds."""
        return float(np.mean(list(self.seeds.values())))


def finalists(study: Study, count: int, run_dir: Path | None = None, *, rule: GuardRule = UNGUARDED) -> list[int]:
    """Returns the numbers of the best `count` trained and completed trials, best first.

    Args:
        study: The search.
        count: How many, where there are as many.
        run_dir: Where weights are: a trial that has none there any more is passed over.
        rule: The guards: trials that were scored on them, and lose more than they may, come last.
    """
    trained = [trial for trial in _complete(study) if trial.user_attrs.get(ROLE) != BASE]
    distinct = [trial for trial in trained if DUPLICATE_OF not in trial.user_attrs]
    base = rule.among(_trial(study, 0).user_attrs.get(GUARD_SCORES, {})) if distinct else {}

    def rank(trial: FrozenTrial) -> tuple[bool, float]:
        loss = guards.excess(base, trial.user_attrs.get(GUARD_SCORES, {}), rule.tolerance)
        return loss <= 0, value_of(trial)

    numbers = [trial.number for trial in sorted(distinct, key=rank, reverse=True)]
    return [number for number in numbers if run_dir is None or weights_of(run_dir, number).is_dir()][:count]


def standings(study: Study, retrains: Study | None = None) -> list[Standing]:
    """Ranks the retrained trials by the lower bound of their mean dev score, best first.

    The bound is Student's t with the standard deviation between seeds pooled over the retrained trials: a deviation of
    two or three seeds alone is too noisy to rank by (`statistics.lower_bound`). Trials without a retraining follow, by
    their dev score: all of them where finalists were not asked for. Trials that were scored on a pool alone come last.
    """
    numbers = finalists(study, len(study.get_trials(deepcopy=False)))
    seeds = _seeds(study, numbers, retrains)
    spread = pooled_spread([list(values.values()) for values in seeds.values()])
    bounds = {
        number: lower_bound(list(values.values()), spread) if spread and len(values) > 1 else None
        for number, values in seeds.items()
    }
    whole = whole_corpus(study) if study.user_attrs.get(POOL) else seeds
    ranked = [
        Standing(trial=number, seeds=values, lower=bounds[number], whole_corpus=number in whole)
        for number, values in seeds.items()
    ]
    return sorted(ranked, key=_order, reverse=True)


def _order(standing: Standing) -> tuple[bool, bool, float]:
    is_retrained = standing.lower is not None
    return standing.whole_corpus, is_retrained, standing.mean if standing.lower is None else standing.lower


def winner(
    study: Study,
    retrains: Study | None = None,
    *,
    run_dir: Path | None = None,
    rule: GuardRule = UNGUARDED,
    own: Mapping[str, Any] | None = None,
) -> int | None:
    """Returns the number of the winning trial; None when no trained trial completed.

    Args:
        study: The search.
        retrains: The finalists' retrainings, if any.
        run_dir: Where weights are and guards were scored: of those with weights, the best that keeps the guards wins,
            and the best of all where none does.
        rule: The guards, and what they may lose.
        own: The user's own values of what is not training, from `encoding.own_settings`.
    """
    ranked = [standing.trial for standing in standings(study, retrains)]
    if run_dir:
        ranked = [number for number in ranked if weights_of(run_dir, number).is_dir()] or ranked
    guarded = [number for number in ranked if run_dir and rule.read(run_dir, trial_name(number))]
    kept = [n for n in guarded if run_dir and not _forgets(run_dir, _trial(study, n), rule, own or {})]
    return next(iter([*kept, *ranked]), None)


def _forgets(run_dir: Path, trial: FrozenTrial, rule: GuardRule, own: Mapping[str, Any]) -> bool:
    """Whether a trial loses a guard beyond the tolerance: of the base model as it is, or encoded as the trial is."""
    folders = {BASE_FOLDER, base_folder(settings_of(arguments_of(trial), own))}
    known = (rule.read(run_dir, folder) for folder in folders)
    scores = rule.read(run_dir, trial_name(trial.number))
    return any(guards.lost(base, scores, rule.tolerance) for base in known if base)


def best_settings(run_dir: Path, study: Study, metric: str, rule: GuardRule, own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that the base model is best used with, by dev: its own (empty), or those of a trial.

    Only settings that it was scored with count, and where guards were scored, those that lose none beyond the
    tolerance.
    """
    best, best_dev = dict[str, Any](), base_scores(run_dir, study, BASE_FOLDER).get(metric, -math.inf)
    kept = rule.read(run_dir, BASE_FOLDER)
    for trial in _complete(study):
        settings = settings_of(arguments_of(trial), own)
        dev = base_scores(run_dir, study, base_folder(settings)).get(metric, -math.inf)
        keeps = not kept or not guards.lost(kept, rule.read(run_dir, base_folder(settings)), rule.tolerance)
        if dev > best_dev and keeps:
            best, best_dev = settings, dev
    return best


def base_scores(run_dir: Path, study: Study, folder: str) -> dict[str, float]:
    """Returns metric -> mean on dev of the base model in RUN/trials/`folder`; empty where it was not scored."""
    if folder == BASE_FOLDER:
        return dict(_trial(study, 0).user_attrs.get(SCORES, {}))
    path = trial_path(run_dir, folder) / scores_file("dev")
    return Scores.from_json(path.read_text("utf-8")).means if path.exists() else {}


def chosen_mixture(
    run_dir: Path, study: Study, number: int, metric: str, rule: GuardRule, own: Mapping[str, Any] | None = None
) -> Mixture | None:
    """Returns the mixture of trial `number` with the base model that replaces it; None where none was better."""
    found = mixtures(run_dir, study, number, metric, rule, own)
    choice = guards.choose(*found, rule.tolerance)[0] if found else None
    return None if choice is None or choice.alpha == 1.0 else choice


def mixtures(
    run_dir: Path, study: Study, number: int, metric: str, rule: GuardRule, own: Mapping[str, Any] | None = None
) -> tuple[Mixture, Mixture, Sequence[Mixture]] | None:
    """Returns the base model, trial `number` itself, and the mixtures of both; None where none were scored.

    All of them are encoded as the trial is.
    """
    trial, rows = _trial(study, number), guards.read_mixtures(run_dir, number, metric)
    between = [replace(row, guard=rule.among(row.guard)) for row in rows]
    folder = base_folder(settings_of(arguments_of(trial), own or {}))
    start = _end(base_scores(run_dir, study, folder), rule.read(run_dir, folder), metric, 0.0)
    trained = _end(dev_scores(study, trial), rule.read(run_dir, trial_name(number)), metric, 1.0)
    return (start, trained, between) if between and start and trained else None


def _end(dev: Mapping[str, float], scores: GuardScores | None, metric: str, alpha: float) -> Mixture | None:
    return Mixture(alpha=alpha, dev=dev[metric], guard=scores, dev_all=dev) if scores and dev else None


def _trial(study: Study, number: int) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[number]


def noise(ranked: Sequence[Standing]) -> float | None:
    """Returns the standard deviation between seeds of one trial, pooled over trials; None without retrainings."""
    spread = pooled_spread([list(standing.seeds.values()) for standing in ranked])
    return None if spread is None else spread.deviation


def ties(ranked: Sequence[Standing]) -> list[int]:
    """Returns the trials that the winner `ranked[0]` cannot be told from: means closer than the noise between seeds."""
    level = noise(ranked) or 0.0
    alike = [standing for standing in ranked[1:] if standing.whole_corpus == ranked[0].whole_corpus]
    rivals = [standing for standing in alike if len(standing.seeds) == len(ranked[0].seeds)]
    return [rival.trial for rival in rivals if abs(rival.mean - ranked[0].mean) <= level]


def _complete(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _seeds(study: Study, numbers: Sequence[int], retrains: Study | None) -> dict[int, dict[int, float]]:
    """Trial -> training seed -> objective on dev."""
    trials, whole = study.get_trials(deepcopy=False), whole_corpus(study)
    values = {number: whole[number]["value"] if number in whole else value_of(trials[number]) for number in numbers}
    seeds = {number: {trials[number].user_attrs[SEED]: value} for number, value in values.items()}
    for again in _complete(retrains) if retrains else ():
        if (source := again.user_attrs[SOURCE]) in seeds:
            seeds[source][again.user_attrs[SEED]] = value_of(again)
    return seeds
