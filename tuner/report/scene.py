"""What the pictures of one search share: its trials, the axis of their scores, and how each trial is marked.

A colour means one thing in all of them: blue the best trial, ink other trials, grey what was stopped, orange what
failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tuner.report.drawing import Axis, Drawing, linear
from tuner.report.standings import FAILED, PAUSED, PRUNED, RUNNING, Standing, leader, of_role
from tuner.study.trials import BASE, USER

_NOTHING = Markup("")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One figure of a page."""

    title: str
    caption: str
    """What is shown and how to read it, in a sentence or two."""
    html: Markup = _NOTHING
    """The drawing; empty where there is nothing to draw."""
    name: str = ""
    """Its id in the page."""
    width: int = 0
    """Pixels below which the picture scrolls in place of shrinking; 0: shrinks freely."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What all pictures of one search share."""

    trials: Sequence[Standing]
    metric: str
    """The objective as a page names it."""
    rungs: Sequence[float]
    """Shares of the training examples at which trials are scored."""
    best: int | None = None
    """Number of the trial that is drawn as the best; None: the one that leads."""
    error: tuple[float, int] | None = None
    """Standard error of the base model's score on dev, and over how many queries."""

    @property
    def base(self) -> Standing | None:
        return of_role(self.trials, BASE)

    @property
    def user(self) -> Standing | None:
        return of_role(self.trials, USER)

    @property
    def best_number(self) -> int | None:
        ahead = leader(self.trials)
        return self.best if self.best is not None else ahead.number if ahead else None

    def kind(self, trial: Standing) -> str:
        """Returns the class that a trial's marks and lines have."""
        if trial.number == self.best_number:
            return "best"
        return {BASE: "base", USER: "user"}.get(trial.role) or _KINDS.get(trial.state, "done")

    def scores(self) -> Axis:
        """Returns the axis of the objective; trials far below the base model do not press the others together."""
        known = [value for trial in self.trials for value in [trial.value, *trial.rungs.values()] if value is not None]
        top, base = max(known), self.base
        rest = base.value if base and base.value is not None else min(known)
        low = rest - max(3 * (top - rest), 0.05)
        spread = self.error[0] if self.error and base else 0.0
        shown = [value for value in known if value >= low]
        return linear([*shown, rest - spread, rest + spread], f"{self.metric} on dev")

    def levels(self, drawing: Drawing) -> None:
        """Draws the base model's score with its standard error, and the score of the user's own settings."""
        if self.base and self.base.value is not None:
            value = self.base.value
            if self.error:
                drawing.band(value - self.error[0], value + self.error[0], "one standard error of dev")
            drawing.level(value, "base", f"base model {value:.4f}")
        if self.user and self.user.value is not None:
            drawing.level(self.user.value, "yours", f"your settings {self.user.value:.4f}")


_KINDS = {PRUNED: "stopped", PAUSED: "stopped", RUNNING: "running", FAILED: "failed"}
_SHAPES = {PRUNED: "ring", PAUSED: "ring", RUNNING: "ring", FAILED: "cross"}


def said(trial: Standing) -> str:
    """Returns what a trial's mark says under the pointer."""
    score = "" if trial.value is None else f" {trial.value:.4f}"
    params = ", ".join(f"{name} {shown(value)}" for name, value in trial.params.items())
    return f"{trial.name}:{score} {trial.state}" + (f"; {params}" if params else "")


def shown(value: object) -> str:
    """Returns a parameter's value as a plot writes it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def shape_of(trial: Standing) -> str:
    """Returns the shape of a trial's mark."""
    return "diamond" if trial.role == USER and trial.state != FAILED else _SHAPES.get(trial.state, "dot")
