"""One job of a search: what is asked of a slot, and how far that is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import Trial

from trainables.config import TrialConfig
from tuner.retries import Tries


@dataclass(kw_only=True)
class Row:
    """One job as the progress table shows it."""

    name: str
    role: str
    params: Mapping[str, Any]
    state: str = "running"
    rung: int = 0
    step: int = 0
    steps: int = 0
    scoring: float = 0.0
    """Seconds of scoring so far."""
    value: float | None = None
    note: str = ""
    """Why nothing moves."""
    started: float
    ended: float | None = None


@dataclass(kw_only=True)
class Job:
    """A job that was handed out, or is to be handed out again."""

    config: TrialConfig
    row: Row
    trial: Trial | None = None
    """The study's trial; None for a job that scores the test set."""
    finalist: bool = False
    stopped: bool = False
    best: float | None = None
    tries: Tries = field(default_factory=Tries)
