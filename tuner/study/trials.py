"""User attributes of the study's trials that more than one module reads."""

from optuna.trial import FrozenTrial

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


def queries_at(trial: FrozenTrial, rung: int) -> str:
    """Returns the objective of each dev query at `rung`, packed; empty where it was not kept."""
    return str(trial.user_attrs.get(f"{QUERIES}_{rung}", ""))
