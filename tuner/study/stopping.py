"""When a search no longer pays: what further trials can be expected to add is less than dev can tell apart."""

import datetime
from collections.abc import Sequence

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from trainables.scoring.measures import unpacked
from tuner.study.trials import BASE, PAUSED_SINCE, ROLE, SAMPLED, is_paused, queries_at


def no_longer_pays(trials: Sequence[FrozenTrial], *, left: int, patience: int) -> str:
    """Returns why no further trial is worth its time; nothing where one may be, or where it cannot be told.

    Each of the trials that are left is expected to add what the best dev score has gained, a trial, since the last
    `patience` of them began. A paused trial counts by its best rung, as it may be taken up again. Dev tells two
    configurations apart from one standard error of their difference on, query by query.

    Args:
        trials: Of the study.
        left: How many are still to come.
        patience: Over how many of the last trials the gain is counted.
    """
    stood = [trial for trial in trials if _stands(trial) and trial.user_attrs.get(ROLE) != BASE]
    sampled = [trial for trial in stood if trial.user_attrs.get(ROLE, SAMPLED) == SAMPLED]
    if left <= 0 or len(sampled) < patience:
        return ""
    before = _best([trial for trial in stood if _stood_before(trial, sampled[-patience])])
    now = _best(stood)
    error = distinguishable(stood)
    if before is None or now is None or error is None:
        return ""
    gained = max(0.0, now - before)
    expected = gained / patience * left
    if expected >= error:
        return ""
    return (
        f"the best dev score rose by {gained:.4f} since the last {patience} trials began: the {left} that are left are "
        f"expected to add {expected:.4f}, and dev cannot tell less than {error:.4f} apart; raise --patience to go on"
    )


def _stands(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or is_paused(trial)


def _stood_before(trial: FrozenTrial, other: FrozenTrial) -> bool:
    """Whether a trial had ended, or paused, when the `other` one began; one that began first may end long after."""
    since = trial.user_attrs.get(PAUSED_SINCE) if is_paused(trial) else None
    stood = datetime.datetime.fromisoformat(since) if since else trial.datetime_complete
    return stood is not None and other.datetime_start is not None and stood <= other.datetime_start


def _best(trials: Sequence[FrozenTrial]) -> float | None:
    complete = [trial.values[0] for trial in trials if trial.state == TrialState.COMPLETE and len(trial.values) == 1]
    paused = [max(trial.intermediate_values.values()) for trial in trials if is_paused(trial)]
    return max([*complete, *paused], default=None)


def distinguishable(trials: Sequence[FrozenTrial]) -> float | None:
    """Returns the standard error of the difference between the two best complete trials; None where unknown."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE and len(t.values) == 1 and t.intermediate_values]
    best = sorted(complete, key=lambda trial: trial.values[0], reverse=True)[:2]
    texts = [queries_at(trial, max(trial.intermediate_values)) for trial in best]
    if len(texts) < 2 or not all(texts):
        return None
    first, second = (np.array(unpacked(text)) for text in texts)
    return float((first - second).std(ddof=1) / np.sqrt(len(first)))
