"""When a search no longer pays: what further trials can be expected to add is less than dev can tell apart."""

from collections.abc import Sequence

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from trainables.scoring.measures import unpacked
from tuner.study.trials import BASE, ROLE, SAMPLED, queries_at


def no_longer_pays(trials: Sequence[FrozenTrial], *, left: int, patience: int) -> str:
    """Returns why no further trial is worth its time; nothing where one may be, or where it cannot be told.

    Each of the trials that are left is expected to add what the last `patience` ones have added to the best dev score,
    on average. Dev tells two configurations apart from one standard error of their difference on, query by query.

    Args:
        trials: Of the study.
        left: How many are still to come.
        patience: Over how many of the last trials the gain is counted.
    """
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    ended = [trial for trial in trials if trial.state in states and trial.user_attrs.get(ROLE) != BASE]
    sampled = [trial for trial in ended if trial.user_attrs.get(ROLE, SAMPLED) == SAMPLED]
    if left <= 0 or len(sampled) < patience:
        return ""
    recent = {trial.number for trial in sampled[-patience:]}
    before = _best([trial for trial in ended if trial.number not in recent])
    now = _best(ended)
    error = distinguishable(ended)
    if before is None or now is None or error is None:
        return ""
    gained = max(0.0, now - before)
    expected = gained / patience * left
    if expected >= error:
        return ""
    return (
        f"the last {patience} trials raised the best dev score by {gained:.4f}, so the {left} that are left are "
        f"expected to add {expected:.4f}, and dev cannot tell less than {error:.4f} apart; raise --patience to go on"
    )


def _best(trials: Sequence[FrozenTrial]) -> float | None:
    values = [trial.values[0] for trial in trials if trial.state == TrialState.COMPLETE and len(trial.values) == 1]
    return max(values, default=None)


def distinguishable(trials: Sequence[FrozenTrial]) -> float | None:
    """Returns the standard error of the difference between the two best complete trials; None where unknown."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE and len(t.values) == 1 and t.intermediate_values]
    best = sorted(complete, key=lambda trial: trial.values[0], reverse=True)[:2]
    texts = [queries_at(trial, max(trial.intermediate_values)) for trial in best]
    if len(texts) < 2 or not all(texts):
        return None
    first, second = (np.array(unpacked(text)) for text in texts)
    return float((first - second).std(ddof=1) / np.sqrt(len(first)))
