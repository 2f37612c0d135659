"""live.html and status.json: how a search that runs is doing, written whole again and again.

The page needs no server: it is a file that loads itself again, and leads to the report once there is one.
"""

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainables.names import LOG
from trainables.scoring.metric import Metric
from tuner.report.about import lies_beside, log_of
from tuner.report.figures import history, rungs_picture
from tuner.report.scene import Scene
from tuner.report.standings import RUNNING as TRIAL_RUNNING
from tuner.report.standings import WAITING, Standing, leader, of_role, parameter_names
from tuner.report.templates import environment, framed
from tuner.run_dir.names import LIVE_PAGE, REPORT_FILE, STATUS, part_name
from tuner.study.trials import BASE, USER

RUNNING, STOPPED, FINISHED = "running", "stopped", "finished"
"""States of a search."""
INTERRUPTED = "interrupted"
"""State of a trial that is taken up again with the search."""
RELOAD_SECONDS = 5
_RELOAD_STOPPED = 60
_TEMPLATE = "live_template.html"


@dataclass(frozen=True, kw_only=True)
class Work:
    """One job that runs."""

    name: str
    """Folder of RUN/trials that has its log."""
    title: str
    """What it is called in words."""
    doing: str
    """How far it is."""
    is_trial: bool
    """Whether it is one of the search's own trials: finalists' retrainings and the test come after them."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a search is doing."""

    state: str
    """`RUNNING`, `STOPPED` or `FINISHED`."""
    reason: str = ""
    """Why it stopped; of one that runs, why nothing is begun; of a finished one, the verdict."""
    model: str
    run_dir: str
    """Path or URL."""
    again: str
    """What follows ``--resume``."""
    metric: str
    rungs: Sequence[float]
    planned: int
    """Trials in the study when the search is done."""
    trials: Sequence[Standing]
    work: Sequence[Work]
    place: str
    """The machines, and how much of them a trial has."""
    seconds: float
    """How long the search has taken, all of its sessions together."""
    seconds_left: float | None
    """About how long it still takes; None while nothing tells."""
    price_per_hour: float | None = None
    now: datetime.datetime
    error: tuple[float, int] | None = None
    """Standard error of the base model's score on dev, and over how many queries."""

    @property
    def resume(self) -> str:
        """The command that goes on with the search."""
        return f"python -m tuner.search --resume {self.again}"

    @property
    def begun(self) -> int:
        """How many trials have begun, the base model among them."""
        return sum(trial.state != WAITING for trial in self.trials)

    @property
    def cost(self) -> float | None:
        """What the search has cost, where its price an hour is known."""
        return None if self.price_per_hour is None else self.price_per_hour * self.seconds / 3600

    @property
    def sentence(self) -> str:
        """All of it in a few words."""
        parts = [self._where(), self._best(), self._end(), self._spent()]
        return " ".join(part for part in parts if part)

    def _where(self) -> str:
        if self.state == FINISHED:
            return f"The verdict: {self.reason}."
        if self.state == STOPPED:
            return f"Stopped at {self.at}."
        if self.work and not any(work.is_trial for work in self.work):
            return f"The trials have ended; now: {', '.join(work.title for work in self.work)}."
        return f"{self.at.capitalize()}." if self.begun else "The workers start."

    @property
    def at(self) -> str:
        """How far it is, by the numbers that trials have: the base model is number 0."""
        return f"trial {self.begun - 1} of {self.planned - 1}" if self.begun > 1 else "the base model"

    def _best(self) -> str:
        best, base = leader(self.trials), of_role(self.trials, BASE)
        if base is None or base.value is None:
            return "Nothing is scored yet."
        if best is None or best.value is None:
            return f"The base model has {base.value:.4f} on dev."
        gain = f"{best.value - base.value:+.4f}".replace("-", "−")
        so_far, tested = ("", "") if self.state == FINISHED else (" so far", "; not yet tested")
        return (
            f"Best{so_far} {best.value:.4f} on dev (trial {best.number}) against the base model's {base.value:.4f}, "
            f"{gain}{tested}."
        )

    def _end(self) -> str:
        if self.state != RUNNING or self.seconds_left is None:
            return ""
        end = self.now + datetime.timedelta(seconds=self.seconds_left)
        return f"Done about {end:%H:%M}{'' if end.date() == self.now.date() else f' on {end:%Y-%m-%d}'}."

    def _spent(self) -> str:
        return "" if self.cost is None else f"Cost so far {self.cost:.2f}."

    def to_dict(self) -> dict[str, Any]:
        """Returns what status.json holds."""
        best, base, user = leader(self.trials), of_role(self.trials, BASE), of_role(self.trials, USER)
        left = self.seconds_left
        end = None if left is None else (self.now + datetime.timedelta(seconds=left)).isoformat(timespec="seconds")
        return {
            "state": self.state,
            "sentence": self.sentence,
            "reason": self.reason,
            "updated": self.now.isoformat(timespec="seconds"),
            "run_dir": self.run_dir,
            "model": self.model,
            "metric": self.metric,
            "planned": self.planned,
            "begun": self.begun,
            "base": _scored(base),
            "user": _scored(user),
            "best": _scored(best),
            "seconds": round(self.seconds, 1),
            "seconds_left": None if left is None else round(left, 1),
            "end": end,
            "cost": None if self.cost is None else round(self.cost, 4),
            "place": self.place,
            "running": [dataclasses.asdict(work) for work in self.work],
            "trials": [_row(_as_it_is(trial, self.state)) for trial in self.trials],
            "resume": self.resume,
            "report": REPORT_FILE if self.state == FINISHED else None,
        }


def _scored(trial: Standing | None) -> dict[str, Any] | None:
    return None if trial is None else {"trial": trial.number, "dev": trial.value, "params": dict(trial.params)}


def _row(trial: Standing) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "role": trial.role,
        "state": trial.state,
        "dev": trial.value,
        "rungs": {str(rung): value for rung, value in trial.rungs.items()},
        "params": dict(trial.params),
        "error": trial.error,
    }


def write_live(run_dir: Path, status: Status) -> None:
    """Writes RUN/status.json and RUN/live.html, each whole.

    Raises:
        OSError: They cannot be written.
    """
    _replace(run_dir / STATUS, json.dumps(status.to_dict(), indent=1, ensure_ascii=False, default=str) + "\n")
    _replace(run_dir / LIVE_PAGE, live_page(run_dir, status))


def _replace(path: Path, text: str) -> None:
    """Writes a file at once, without waiting for the disk: after a power cut another will be written anyway."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def live_page(run_dir: Path, status: Status, *, base_url: str = "", reloads: bool = True) -> str:
    """Returns live.html.

    Args:
        run_dir: Where the logs are that it links to.
        status: What it shows.
        base_url: What its links start from; empty: the page's own place.
        reloads: Whether it loads itself again.
    """
    return environment().get_template(_TEMPLATE).render(_contents(run_dir, status, base_url, reloads))


def in_a_cell(run_dir: Path, status: Status, base_url: str) -> str:
    """Returns the page in a frame of its own, for a notebook's cell, whoever serves that."""
    page = live_page(run_dir, status, base_url=base_url, reloads=False)
    return framed(page, height=640, title="search")


def _contents(run_dir: Path, status: Status, base_url: str, reloads: bool) -> Mapping[str, Any]:
    """Everything that the template shows, by name."""
    shown = [_as_it_is(trial, status.state) for trial in status.trials if trial.state != WAITING]
    metric = Metric.read(status.metric)
    scene = Scene(trials=shown, metric=metric.label, rungs=status.rungs, error=status.error)
    return {
        "status": status,
        "reload": {RUNNING: RELOAD_SECONDS, STOPPED: _RELOAD_STOPPED}.get(status.state, 0) if reloads else None,
        "base_url": base_url,
        "best": leader(shown),
        "base": scene.base,
        "user": scene.user,
        "pictures": [history(scene), rungs_picture(scene, several=metric.is_pareto)],
        "trials": [{**vars(trial), "kind": scene.kind(trial), "log": log_of(run_dir, trial.number)} for trial in shown],
        "parameter_names": _names(shown),
        "has_report": lies_beside(run_dir, REPORT_FILE),
        "logs": {work.name: lies_beside(run_dir, f"{part_name(work.name)}/{LOG}") for work in status.work},
    }


def _as_it_is(trial: Standing, search: str) -> Standing:
    """A trial that ran when the search was stopped runs no more."""
    return replace(trial, state=INTERRUPTED) if search == STOPPED and trial.state == TRIAL_RUNNING else trial


def _names(trials: Sequence[Standing]) -> list[str]:
    return parameter_names(trials) or list(dict.fromkeys(name for trial in trials for name in trial.params))
