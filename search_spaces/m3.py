"""The space for BGE-M3 and other large encoders: the four numbers that people guess, and the warm-up.

The ranges enclose what FlagEmbedding's examples and its issue tracker report for bge-m3 (learning rate 1e-6 to 3e-5,
temperature 0.01 to 0.05, groups of 2 to 16).
"""

from typing import Any

import optuna

from search_spaces.context import Context


def m3(trial: optuna.Trial, context: Context) -> dict[str, Any]:
    """Suggests learning rate, temperature, group size, batch size and warm-up for a large model."""
    learning_rate = context.bounds("learning_rate", 2e-6, 3e-5)
    temperature = context.bounds("temperature", 0.01, 0.05)
    warmup = context.bounds("warmup_ratio", 0.05, 0.2)
    batch_sizes = context.batch_sizes([2, 4, 8, 16, 32, 64])
    return {
        "learning_rate": trial.suggest_float("learning_rate", *learning_rate, log=True),
        "temperature": trial.suggest_float("temperature", *temperature, log=True),
        "train_group_size": trial.suggest_categorical("train_group_size", context.group_sizes([2, 4, 8, 16])),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", batch_sizes),
        "warmup_ratio": trial.suggest_float("warmup_ratio", *warmup),
    }
