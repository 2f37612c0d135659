from collections.abc import Callable
from typing import Any

import optuna
import pytest

from search_spaces import Context, load_search_space, names
from tuner.errors import RequestError
from tuner.planning.space import rehearse

OWN = Context(rows=1000, negatives=7, start={"train_group_size": 4, "num_train_epochs": 1.5, "weight_decay": 0.0})


def too_small(trial: optuna.Trial, _: Context) -> dict[str, Any]:
    return {"train_group_size": trial.suggest_categorical("train_group_size", [8, 16])}


def sometimes_empty(trial: optuna.Trial, context: Context) -> dict[str, Any]:
    size = trial.suggest_categorical("train_group_size", context.with_start("train_group_size", [2, 16]))
    return {"train_group_size": size, "temperature": {2: 0.1, 4: 0.02}[size]}


def other_each_time(trial: optuna.Trial, _: Context) -> dict[str, Any]:
    return {"train_group_size": trial.suggest_categorical("train_group_size", [4, 8 + trial.number])}


def whole_epochs(trial: optuna.Trial, _: Context) -> dict[str, Any]:
    return {"num_train_epochs": trial.suggest_int("num_train_epochs", 1, 3)}


def misspelt(trial: optuna.Trial, _: Context) -> dict[str, Any]:
    return {"lerning_rate": trial.suggest_float("lerning_rate", 0.1, 0.2)}


def of_another_name(trial: optuna.Trial, _: Context) -> dict[str, Any]:
    return {"train_group_size": 2 ** trial.suggest_int("log2_group", 1, 4)}


def rounded(trial: optuna.Trial, _: Context) -> dict[str, Any]:
    return {"num_train_epochs": round(trial.suggest_float("num_train_epochs", 1, 3))}


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (too_small, r"ValueError: .?4.? not in \(8, 16\)"),
        (sometimes_empty, "KeyError: 16"),
        (other_each_time, "CategoricalDistribution does not support dynamic value space"),
        (whole_epochs, "num_train_epochs: your own value 1.5 is no value of the space, which takes it for 1"),
        (misspelt, "lerning_rate is no argument of FlagEmbedding or transformers"),
        (of_another_name, "it suggests log2_group, which is no argument, .*suggest the argument itself"),
        (rounded, "num_train_epochs: your own value 1.5 is no value of the space, which takes it for 2"),
    ],
)
def test_a_space_that_would_break_the_search_is_refused(space: Callable[..., dict[str, Any]], words: str) -> None:
    with pytest.raises(RequestError, match=f"--search_space mine: .*{words}"):
        rehearse("mine", space, OWN)


@pytest.mark.parametrize("name", names())
def test_our_own_spaces_pass(name: str) -> None:
    varied = rehearse(name, load_search_space(name), OWN)
    assert {"learning_rate", "temperature", "train_group_size", "per_device_train_batch_size"} <= varied.keys()
