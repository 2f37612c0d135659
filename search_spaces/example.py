"""The space of the embedded example: a small model (22M parameters) learns with larger steps than bge-m3."""

from typing import Any

import optuna

from search_spaces.context import Context


def example(trial: optuna.Trial, context: Context) -> dict[str, Any]:
    """Suggests learning rate, temperature, group size and batch size for all-MiniLM-L6-v2."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", *context.bounds("learning_rate", 2e-5, 5e-4), log=True),
        "temperature": trial.suggest_float("temperature", *context.bounds("temperature", 0.01, 0.1), log=True),
        "train_group_size": trial.suggest_int("train_group_size", *context.group_bounds(1, 2)),
        "per_device_train_batch_size": trial.suggest_int("per_device_train_batch_size", *context.batch_bounds(8, 32)),
    }
