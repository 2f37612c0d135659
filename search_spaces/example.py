"""The space of the embedded example: a small model (22M parameters) learns with larger steps than bge-m3."""

from typing import Any

import optuna

from search_spaces.context import Context


def example(trial: optuna.Trial, context: Context) -> dict[str, Any]:
    """Suggests learning rate, temperature, group size and batch size for all-MiniLM-L6-v2."""
    learning_rate = context.bounds("learning_rate", 2e-5, 5e-4)
    temperature = context.bounds("temperature", 0.01, 0.1)
    return {
        "learning_rate": trial.suggest_float("learning_rate", *learning_rate, log=True),
        "temperature": trial.suggest_float("temperature", *temperature, log=True),
        "train_group_size": trial.suggest_categorical("train_group_size", context.group_sizes([1, 2])),
        "per_device_train_batch_size": trial.suggest_categorical(
            "per_device_train_batch_size", context.batch_sizes([8, 16, 32])
        ),
    }
