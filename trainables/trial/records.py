"""What a trial has reported: its metrics.jsonl, and the time it took."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trainables.config import RungReport
from trainables.files import append_line, write_text
from trainables.names import METRICS
from trainables.process import rank


class Clock:
    """Splits the time since it was made into training, scoring and the rest."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._spent = {"training": 0.0, "scoring": 0.0}
        self._before = 0.0

    def go_on_from(self, seconds: Mapping[str, float]) -> None:
        """Counts on from what an earlier process had spent."""
        for part in self._spent:
            self._spent[part] += seconds.get(part, 0.0)
        self._before += sum(seconds.values())

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Counts a block's time to a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent[part] += time.perf_counter() - start

    def add(self, part: str, seconds: float) -> None:
        """Counts seconds to a part."""
        self._spent[part] += seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds so far by part; `overhead` is what neither trained nor scored."""
        total = self._before + time.perf_counter() - self._start
        return self._spent | {"overhead": total - sum(self._spent.values())}


def write_record(folder: Path, record: RungReport) -> RungReport:
    """Appends a report to the trial's metrics.jsonl and returns it."""
    if rank() == 0:
        append_line(folder / METRICS, json.dumps(record.to_dict()))
    return record


def read_records(folder: Path) -> list[RungReport]:
    """Returns what the trial has reported, in its order; a last line that was cut short is removed."""
    if not (folder / METRICS).exists():
        return []
    text = (folder / METRICS).read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text and rank() == 0:
        write_text(folder / METRICS, whole)
    return [RungReport.from_dict(json.loads(line)) for line in whole.splitlines()]
