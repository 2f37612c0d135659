"""User attributes of the study's trials that more than one module reads."""

from optuna.trial import FrozenTrial, TrialState

ROLE = "role"
BASE, USER, SAMPLED = "base", "user", "sampled"
"""Roles: the base model, the user's own settings, a suggestion."""
ARGUMENTS = "arguments"
"""What a trial trains with, where a space returns other arguments than Optuna's parameters."""
INFEASIBLE = "infeasible"
"""The trial fits the device in no way, or diverged."""
GUARD_EXCESS = "guard_excess"
"""How much more it lost on a guard than it may; below 0 where it did not."""
QUERIES = "queries"
"""With the number of a rung: the objective of each dev query there, packed."""

ENDED_EARLY = "ended_early"
"""Of the study: why not all of its trials were made."""
PAUSED = "paused_at"
"""The rung at which a trial waits to be promoted; 0 once it is taken up again."""
PROMOTED = "promoted_at"
"""The rung up to which it was told to go on."""


def is_paused(trial: FrozenTrial) -> bool:
    """Whether the trial stands at a rung and may be promoted: to Optuna it is running."""
    return trial.state == TrialState.RUNNING and trial.user_attrs.get(PAUSED, 0) > 0


def queries_at(trial: FrozenTrial, rung: int) -> str:
    """Returns the objective of each dev query at `rung`, packed; empty where it was not kept."""
    return str(trial.user_attrs.get(f"{QUERIES}_{rung}", ""))
