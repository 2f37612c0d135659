"""One job of a search: what is asked of a slot, and how far that is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import Trial

from trainables.config import TrialConfig
from trainables.tally import Position
from tuner.schedule.retries import Tries


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
    first_step: tuple[float, int] | None = None
    """When a step was first heard of, and which: a trial that is taken up again does not begin at 1."""
    scoring: Position | None = None
    """How far it is with the corpus that it is scored on."""
    value: float | None = None
    note: str = ""
    """Why nothing moves."""
    started: float
    """When it was handed out."""
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
