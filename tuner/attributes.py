"""User attributes of the study's trials that more than one module reads."""

ROLE = "role"
BASE, USER, SAMPLED = "base", "user", "sampled"
"""Roles: the base model, the user's own settings, a suggestion."""
INFEASIBLE = "infeasible"
"""The trial fits the device in no way, or diverged."""
GUARD_EXCESS = "guard_excess"
"""How much more it lost on a guard than it may; below 0 where it did not."""
