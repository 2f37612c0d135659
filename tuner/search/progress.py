"""What the user sees while a search runs: a live table in a terminal or notebook, plain lines elsewhere."""

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tuner.errors import printable
from tuner.schedule.agenda import Agenda
from tuner.schedule.jobs import Row

_SHORT = {
    "learning_rate": "lr",
    "temperature": "T",
    "train_group_size": "group",
    "per_device_train_batch_size": "batch",
    "warmup_ratio": "warmup",
}
_STYLES = {"running": "cyan", "pruned": "dim", "failed": "red", "complete": "default", "retried": "yellow"}
_TABLE_ROWS = 18
_PLAIN_SECONDS = 8.0


class Progress:
    """Shows an agenda for as long as it is entered.

    Args:
        agenda: What is shown.
        console: Where.
        planned: Trials in the study when the search is done.
        rungs: How many rungs a trial has.
    """

    def __init__(self, agenda: Agenda, console: Console, *, planned: int, rungs: int) -> None:
        self._agenda, self._console, self._planned, self._rungs = agenda, console, planned, rungs
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._told: dict[int, tuple[Any, ...]] = {}
        self._spoke = self._started
        live = console.is_terminal or console.is_jupyter
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=2) if live else None
        self._thread = threading.Thread(target=self._talk, daemon=True)

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.__enter__()
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
        else:
            self._thread.join(5)
            self._say_changes()

    # Plain lines

    def _talk(self) -> None:
        while not self._stop.wait(0.5):
            self._say_changes()
            if time.monotonic() - self._spoke > _PLAIN_SECONDS:
                self._say(self._heartbeat())

    def _say_changes(self) -> None:
        for index, row in enumerate(list(self._agenda.rows)):
            seen = (row.state, row.rung, row.value, bool(row.note))
            if self._told.get(index) != seen:
                self._told[index] = seen
                said = f"{_title(row)}  {row.state}{self._rung_of(row)}{_score(row)}  {shown(row.params)}".rstrip()
                self._say(f"{said}  {row.note}".rstrip())

    def _heartbeat(self) -> str:
        running = [row for row in self._agenda.rows if row.state == "running"]
        where = ", ".join(f"{_title(row)} {row.note or _position(row)}" for row in running)
        return ", ".join(filter(None, (self._agenda.note, where))) or "starting the workers (imports, base model)"

    def _say(self, line: str) -> None:
        self._spoke = time.monotonic()
        self._console.print(
            f"{_clock(self._spoke - self._started)}  {printable(line)}", highlight=False, soft_wrap=True, markup=False
        )

    # Live table

    def _table(self) -> RenderableType:
        rows = list(self._agenda.rows)
        names = list(dict.fromkeys(name for row in rows for name in row.params))
        table = Table(box=None, pad_edge=False)
        for title in ("trial", "state", "rung", *(_SHORT.get(name, name) for name in names), "dev", "time"):
            table.add_column(title, justify="left" if title in ("trial", "state") else "right", no_wrap=True)
        for row in rows[-_TABLE_ROWS:]:
            values = [_value(row.params.get(name)) for name in names]
            table.add_row(
                _title(row), row.state, self._position(row), *values, _number(row.value), _clock(_age(row)),
                style=_STYLES.get(row.state, "default"),
            )  # fmt: skip
        notes = [
            Text(f"{_title(row)}  {printable(row.note)}", style="yellow") for row in rows[-_TABLE_ROWS:] if row.note
        ]
        scored = [row for row in rows if row.scoring is not None and row.state == "running"]
        notes += [Text(f"{_title(row)}  {_position(row)}", style="dim") for row in scored]
        return Group(table, *notes, Text(self._caption(rows), style="bold"))

    def _caption(self, rows: list[Row]) -> str:
        if not rows:
            return f"{_clock(time.monotonic() - self._started)}  starting the workers (imports, base model)"
        scored = [row for row in rows if row.value is not None and row.role in ("base", "user", "sampled")]
        best = max(scored, key=lambda row: row.value or 0.0, default=None)
        if self._agenda.note:
            return f"{_clock(time.monotonic() - self._started)}  {self._agenda.note}"
        words = f"best dev {_number(best.value)} (trial {best.name})" if best else "nothing scored yet"
        return f"{_clock(time.monotonic() - self._started)}  {words}{self._time_left(rows)}"

    def _time_left(self, rows: list[Row]) -> str:
        done = [row for row in rows if row.ended is not None and row.role in ("user", "sampled")]
        todo = self._planned - len({row.name for row in rows if row.role in ("base", "user", "sampled")})
        if not done or todo <= 0:
            return ""
        return f"   {todo} trials to go, about {_clock(todo * sum(map(_age, done)) / len(done))}"

    def _position(self, row: Row) -> str:
        if row.state == "running" and row.steps:
            return f"{row.rung}/{self._rungs} {100 * row.step // row.steps}%"
        return f"{row.rung}/{self._rungs}" if row.rung else ""

    def _rung_of(self, row: Row) -> str:
        return f"  rung {row.rung}/{self._rungs}" if row.rung else ""


def shown(params: Mapping[str, Any]) -> str:
    """Returns parameters in one short line: ``lr 2.1e-05  T 0.02  group 4  batch 8``."""
    return "  ".join(f"{_SHORT.get(name, name)} {_value(value)}" for name, value in params.items())


def _position(row: Row) -> str:
    if row.scoring is not None:
        return _scoring(*row.scoring)
    return f"step {row.step}/{row.steps}" if row.steps else "loading the model and the data"


def _scoring(what: str, done: int, total: int) -> str:
    """How many passages are embedded: ``scoring: 1,024 of 60,000 passages embedded``."""
    return f"scoring: {done:,}{f' of {total:,}' if total else ''} passages {what}"


def _title(row: Row) -> str:
    return f"{row.name} {row.role}" if row.role != "sampled" else row.name


def _score(row: Row) -> str:
    return "" if row.value is None else f"  dev {row.value:.4f}" if row.role != "test" else f"  {row.value:.4f}"


def _age(row: Row) -> float:
    return (row.ended or time.monotonic()) - row.started


def _value(value: Any) -> str:
    return "" if value is None else f"{value:.2g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
