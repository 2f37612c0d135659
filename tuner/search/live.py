"""The live page of a search that runs: what the driver holds, written at each rung and every few seconds."""

import datetime
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tuner.interrupts import Interrupted
from tuner.report.about import model_name
from tuner.report.live import FINISHED, RUNNING, STOPPED, Status, Work, in_a_cell, write_live
from tuner.report.standings import dev_error, standings
from tuner.request.config import SearchConfig
from tuner.run_dir.mirror import Mirror
from tuner.schedule.agenda import Agenda
from tuner.schedule.jobs import Row
from tuner.schedule.time_left import TRIALS
from tuner.search import wording
from tuner.search.provenance import Provenance
from tuner.search.session import Session
from tuner.study.study import SearchStudy
from tuner.study.trials import BASE
from tuner.verdict.result import Verdict

logger = logging.getLogger(__name__)

_LEAST_SECONDS, _MOST_SECONDS = 3.0, 10.0
"""Between two pages: where something has happened, and where only steps have."""
_SHARE = 0.01
"""Of the driver's time that pages may take: of a search whose page takes long there are fewer."""


class LivePage:
    """Writes RUN/live.html and RUN/status.json while it is entered; a page that cannot be written stops no search.

    Args:
        agenda: What is shown.
        study: Its trials.
        config: The search.
        session: Its run directory.
        mirror: Brings the pages to object storage.
        provenance: On which machines it runs.
        clock: Seconds, monotonic.
        timer: Seconds, as precise as a page's cost needs.
    """

    def __init__(
        self,
        agenda: Agenda,
        study: SearchStudy,
        config: SearchConfig,
        *,
        session: Session,
        mirror: Mirror,
        provenance: Provenance,
        clock: Callable[[], float] = time.monotonic,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._timer = timer
        self._agenda, self._study, self._config, self._clock = agenda, study, config, clock
        self._store, self._mirror, self._provenance = session.store, mirror, provenance
        self._again = session.again(config)
        self._began, self._earlier = clock(), study.spent
        self._written, self._seen = -_MOST_SECONDS, list[tuple[Any, ...]]()
        self._took: list[float] = []
        self._error: tuple[float, int] | None = None
        self._cell: Any = None

    def __enter__(self) -> "LivePage":
        self._cell = _new_cell()
        self._write(RUNNING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._provenance.record(pages=len(self._took), page_seconds=self.seconds_a_page)
        else:
            self._write(STOPPED, error.reason if isinstance(error, Interrupted) else " ".join(str(error).split()))

    def watching(self, check: Callable[[], None]) -> Callable[[], None]:
        """Returns `check`, to be called at every turn of the driver's loop, which then looks after the page, too."""

        def look() -> None:
            check()
            self.look()

        return look

    def look(self) -> None:
        """Writes the page where it is time for it."""
        passed, seen = self._clock() - self._written, [_mark(row) for row in self._agenda.rows]
        least = max(_LEAST_SECONDS, self._took[-1] / _SHARE if self._took else 0.0)
        if passed >= (least if seen != self._seen else max(least, _MOST_SECONDS)):
            self._seen = seen
            self._write(RUNNING)

    def end(self) -> None:
        """Writes the last page: that the search has ended, where it has, and leads to its report."""
        verdict = Verdict.read(self._store.local)
        if verdict is not None:
            self._write(FINISHED, verdict.verdict)

    @property
    def seconds_a_page(self) -> float:
        """What a page has cost the driver, the median; 0 before the first."""
        return statistics.median(self._took) if self._took else 0.0

    def _write(self, state: str, reason: str = "") -> None:
        started = self._timer()
        try:
            status = self.status(state, reason)
            write_live(self._store.local, status)
            if self._cell is not None:
                self._cell.update(_shown(in_a_cell(self._store.local, status, _base_url(self._store.local))))
        except Exception as error:  # whatever it is: the search goes on, and the next page may be written
            logger.warning("%s: the live page was not written: %s", self._store.local, error)
        self._mirror.pages_changed()
        self._written = self._clock()
        self._took.append(self._timer() - started)

    def status(self, state: str = RUNNING, reason: str = "") -> Status:
        """Returns how the search is doing."""
        config, rows = self._config, list(self._agenda.rows)
        if self._error is None:
            self._error = dev_error(self._store.local, config.metric)
        return Status(
            state=state,
            reason=reason or (self._agenda.note if state == RUNNING else ""),
            model=model_name(config.arguments),
            run_dir=self._store.url,
            again=self._again,
            metric=config.metric,
            rungs=config.rungs,
            planned=config.num_trials,
            trials=standings(self._study.search.get_trials(deepcopy=False)),
            work=[self._work(row) for row in rows if row.state == "running"] if state == RUNNING else [],
            place=self._provenance.place,
            seconds=self._earlier + self._clock() - self._began,
            seconds_left=self._agenda.seconds_left if state == RUNNING else None,
            price_per_hour=config.price_per_hour,
            now=datetime.datetime.now().astimezone(),
            error=self._error,
        )

    def _work(self, row: Row) -> Work:
        return Work(
            name=row.name,
            title=wording.title(row),
            doing=wording.doing(row, len(self._config.rungs)),
            is_trial=row.role in TRIALS,
            seconds=max(0.0, self._clock() - row.started),
        )


def _mark(row: Row) -> tuple[Any, ...]:
    """What of a row makes a new page when it changes; of the base model also that it runs at all."""
    return row.name, row.state, row.rung, row.value, bool(row.note), row.role == BASE


def _new_cell() -> Any:
    """Returns the handle of an output in the notebook's cell that runs this; None where there is no notebook."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell else None
    if running is None or not hasattr(running, "kernel"):
        return None
    from IPython.display import HTML, display

    return display(HTML(""), display_id=True)  # type: ignore[no-untyped-call]


def _shown(html: str) -> Any:
    from IPython.display import HTML

    return HTML(html)  # type: ignore[no-untyped-call]


def _base_url(run_dir: Path) -> str:
    """Returns where the page's links start from in a notebook that stands in the working directory."""
    return f"{os.path.relpath(run_dir)}/"
