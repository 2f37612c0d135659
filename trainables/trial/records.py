"""What a trial has reported: its metrics.jsonl, and the time it took."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainables.config import RungReport, TrialConfig
from trainables.files import append_line, write_text
from trainables.names import METRICS
from trainables.process import rank
from trainables.scoring.measures import Scores


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


class Reported:
    """The rungs of a trial that were reported, and when the others are due.

    Rung k of fraction f is reached after ceil(f x all steps) optimizer steps.

    Args:
        config: the trial.
        clock: runs since the trial began.
        batch_size: training rows in one optimizer step, over all workers.
        done: rungs that an earlier process has reported, where this one goes on from its state.
    """

    def __init__(self, config: TrialConfig, clock: Clock, *, batch_size: int, done: Sequence[RungReport] = ()) -> None:
        self.config, self.clock = config, clock
        self._batch_size, self._done = batch_size, list(done)

    @property
    def best(self) -> float:
        """The highest value of the objective; minus infinity before the first rung."""
        return max((report.value for report in self._done), default=-math.inf)

    def due(self, step: int, steps: int) -> list[int]:
        """Returns the numbers (from 1) of the rungs that this step reaches: several where steps are few."""
        rungs = self.config.rungs
        return [k + 1 for k in range(len(self._done), len(rungs)) if step >= math.ceil(rungs[k] * steps)]

    def was_reported(self, step: int) -> bool:
        """Returns whether a rung was reported at this step, which a trial passes again that goes on from before it."""
        return any(report.step == step for report in self._done)

    def is_last(self, number: int) -> bool:
        """Returns whether a rung ends the trial."""
        return number == len(self.config.rungs)

    def add(self, number: int, step: int, loss: float, scores: Scores, guards: Mapping[str, float]) -> RungReport:
        """Returns the report of a rung, which is in the trial's metrics.jsonl then."""
        config = self.config
        report = RungReport(
            rung=number,
            fraction=config.rungs[number - 1],
            step=step,
            examples=step * self._batch_size,
            loss=loss,
            value=scores.means[config.metric],
            scores=scores.means,
            last=self.is_last(number),
            guards=guards if self.is_last(number) else {},
            seconds=self.clock.seconds,
            queries=scores.packed(config.metric),
        )
        self._done.append(report)
        return write_record(Path(config.directory), report)


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
