"""What the user sees while a search runs: a live table in a terminal, plain lines elsewhere."""

import threading
import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tuner.errors import printable
from tuner.schedule.agenda import Agenda
from tuner.schedule.jobs import Row
from tuner.search import wording
from tuner.search.terminal import say

_STYLES = {"running": "cyan", "pruned": "dim", "paused": "dim", "failed": "red", "retried": "yellow"}
_TABLE_ROWS = 18
_PINNED = 2
"""The base model and the user's own settings stay in sight."""
_QUIET_SECONDS = 60.0
"""How often plain lines say what goes on where nothing has ended: a log that nobody watches is to stay short."""
_UNKNOWN = "time left: known after the first steps of training"


class Progress:
    """Shows an agenda for as long as it is entered.

    In plain lines each job is told once, when it ends, with what it scored at all of its rungs; what keeps one from
    moving, and what has scored far below the base model, is told at once.

    Args:
        agenda: What is shown.
        console: Where.
        planned: Trials in the study when the search is done.
        rungs: How many rungs a trial has.
    """

    def __init__(self, agenda: Agenda, console: Console, *, planned: int, rungs: int) -> None:
        self._agenda, self._console, self._planned, self._rungs = agenda, console, planned, rungs
        self._stop = threading.Event()
        self._told: set[tuple[int, str]] = set()
        self._spoke = time.monotonic()
        is_live = console.is_terminal  # a notebook is none: its cell has the live page
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=2) if is_live else None
        self._thread = threading.Thread(target=self._talk, daemon=True)

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.__enter__()
        else:
            self._say("starting the workers (imports, base model)")
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
            if time.monotonic() - self._spoke > _QUIET_SECONDS:
                self._say(self._heartbeat())

    def _say_changes(self) -> None:
        rows = list(self._agenda.rows)
        base = wording.base_value([*self._agenda.earlier, *rows])
        self._tell(-1, self._agenda.note)
        for index, row in enumerate(rows):
            if warning := wording.far_below(row, base):
                self._tell(index, f"warning: {warning}", once="far below")
            if row.state == "running":
                self._tell(index, row.note and f"{wording.title(row)}  {row.note}")
            else:
                self._tell(index, self._ending(row, rows), once="end")

    def _tell(self, index: int, line: str, once: str = "") -> None:
        """Says a line of a row, unless it was said before."""
        mark = (index, once or line)
        if line and mark not in self._told:
            self._told.add(mark)
            self._say(line)

    def _ending(self, row: Row, rows: list[Row]) -> str:
        rung = f"rung {row.rung} of {self._rungs}" if 0 < row.rung < self._rungs else ""
        parts = (wording.title(row), row.state, rung, wording.result(row), wording.shown(row.params), row.note)
        until = [*self._agenda.earlier, *rows[: rows.index(row) + 1]]
        is_best = row is wording.best_row(until) and row.state == "complete"
        return "  ".join(filter(None, (*parts, "<- best so far" if is_best else "")))

    def _heartbeat(self) -> str:
        rows = self._agenda.shown
        running = "; ".join(
            f"{wording.title(r)}: {wording.doing(r, self._rungs)}" for r in rows if r.state == "running"
        )
        parts = (
            self._agenda.note,
            wording.begun(rows, self._planned),
            running,
            wording.best_so_far(rows),
            self._left(),
        )
        return "; ".join(filter(None, parts)) if self._agenda.rows else "starting the workers (imports, base model)"

    def _left(self) -> str:
        left = self._agenda.seconds_left
        return _UNKNOWN if left is None else f"about {wording.clock(left)} left"

    def _say(self, line: str) -> None:
        self._spoke = time.monotonic()
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        say(self._console, f"{now}  {printable(line)}")

    # Live table

    def _table(self) -> RenderableType:
        rows = self._agenda.shown
        shown = rows if len(rows) <= _TABLE_ROWS else [*rows[:_PINNED], *rows[_PINNED - _TABLE_ROWS :]]
        best, base = wording.best_row(rows), wording.base_value(rows)
        names = list(dict.fromkeys(name for row in rows for name in row.params))
        table = Table(box=None, pad_edge=False, collapse_padding=True)
        for title in (
            "trial",
            "state",
            "rung",
            *(wording.SHORT.get(name, name) for name in names),
            "dev",
            "peak",
            "time",
        ):
            table.add_column(title, justify="left" if title in ("trial", "state") else "right", no_wrap=True)
        for row in shown:
            values = [wording.value(row.params.get(name)) for name in names]
            scores = [wording.score(row.scores[-1]) if row.scores else "", wording.score(row.value)]
            table.add_row(
                wording.short_title(row), wording.state(row), wording.position(row, self._rungs), *values, *scores,
                wording.clock(wording.age(row)), style="bold green" if row is best else _STYLES.get(row.state, ""),
            )  # fmt: skip
        notes = [Text(f"{wording.title(row)}  {printable(row.note)}", style="yellow") for row in shown if row.note]
        notes += [Text(f"warning: {told}", style="yellow") for row in shown if (told := wording.far_below(row, base))]
        return Group(table, *notes, *(Text(line, style="bold") for line in self._caption(rows)))

    def _caption(self, rows: list[Row]) -> list[str]:
        passed = f"{wording.clock(self._agenda.seconds_spent)} passed"
        if not rows:
            return [f"{passed}, starting the workers (imports, base model)"]
        first = ", ".join(filter(None, (wording.begun(rows, self._planned), wording.best_so_far(rows))))
        return list(filter(None, (first, f"{passed}, {self._left()}", self._agenda.note)))
