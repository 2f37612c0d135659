"""The trials of a search as pages show them, while it runs and when it has ended."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from trainables.names import scores_file
from trainables.scoring.measures import Scores
from tuner.run_dir.names import BASE_FOLDER, trial_path
from tuner.study.trials import (
    BASE,
    BEST_VALUE,
    ERROR,
    SECONDS,
    USER,
    arguments_of,
    role_of,
    rung_values,
    state_of,
    value_of,
)

COMPLETE, PRUNED, PAUSED, RUNNING, FAILED, WAITING = "complete", "pruned", "paused", "running", "failed", "waiting"
SHORT_NAMES: Mapping[str, str] = {
    "per_device_train_batch_size": "batch size",
    "train_group_size": "group size",
    "warmup_ratio": "warm-up",
}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One trial: what it is, how far it is, and what it scored."""

    number: int
    role: str
    """``base``, ``user`` or ``sampled``."""
    state: str
    value: float | None
    """The objective on dev at its best rung; None where it reached none."""
    values: Sequence[float] = ()
    """Of several objectives, each."""
    rungs: Mapping[int, float] = field(default_factory=dict)
    """Rung, from 1 -> the objective on dev there."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """What it varies."""
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""

    @property
    def is_trained(self) -> bool:
        """Whether it is not the base model, and was trained to its end."""
        return self.state == COMPLETE and self.role != BASE

    @property
    def name(self) -> str:
        """What it is called in a sentence."""
        titles = {BASE: "base model", USER: f"trial {self.number}, your settings"}
        return titles.get(self.role, f"trial {self.number}")

    def is_log(self, parameter: str) -> bool:
        """Whether a parameter was drawn on a logarithmic scale."""
        drawn = self.distributions.get(parameter)
        return isinstance(drawn, FloatDistribution | IntDistribution) and drawn.log


def standings(trials: Sequence[FrozenTrial]) -> list[Standing]:
    """Returns the trials of a study's search, in the order of their numbers."""
    return [_standing(trial) for trial in trials]


def _standing(trial: FrozenTrial) -> Standing:
    rungs = {rung: value for rung, value in rung_values(trial).items() if value == value}
    best = trial.user_attrs.get(BEST_VALUE)
    value = value_of(trial) if trial.values else max(rungs.values(), default=best)
    return Standing(
        number=trial.number,
        role=role_of(trial),
        state=state_of(trial),
        value=value,
        values=trial.values or (),
        rungs=rungs,
        params=arguments_of(trial),
        distributions=trial.distributions,
        seconds=sum(trial.user_attrs.get(SECONDS, {}).values()),
        error=trial.user_attrs.get(ERROR, ""),
    )


def of_role(trials: Sequence[Standing], role: str) -> Standing | None:
    """Returns the first trial with a score that has a role; None where there is none."""
    return next((trial for trial in trials if trial.role == role and trial.value is not None), None)


def leader(trials: Sequence[Standing]) -> Standing | None:
    """Returns the trained trial with the highest score so far, whether it has ended or not; None before the first."""
    scored = [trial for trial in trials if trial.role != BASE and trial.value is not None and trial.state != FAILED]
    return max(scored, key=lambda trial: trial.value or 0.0, default=None)


def parameter_names(trials: Sequence[Standing]) -> list[str]:
    """Returns the parameters that every trained trial has, in the order of the search space."""
    trained = [trial.params for trial in trials if trial.is_trained and trial.params]
    return [name for name in trained[0] if all(name in params for params in trained)] if trained else []


def short_name(parameter: str) -> str:
    """Returns a parameter's name for the head of a small plot."""
    return SHORT_NAMES.get(parameter, parameter.replace("_", " "))


def dev_error(run_dir: Path, metric: str) -> tuple[float, int] | None:
    """Returns the standard error of the base model's score on dev, and how many queries it is over.

    None where it was not scored, or its scores are not here.
    """
    try:
        scores = Scores.from_json(
            (trial_path(run_dir, BASE_FOLDER) / scores_file("dev")).read_text("utf-8")
        ).with_metric(metric)
        values = list(scores.per_query[metric].values())
    except (OSError, ValueError, KeyError):
        return None
    if len(values) < 2:
        return None
    return statistics.stdev(values) / math.sqrt(len(values)), len(values)
