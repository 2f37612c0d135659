"""A slot's worker group: processes that outlive trials, fed through a mailbox.

Ray Train starts the group once and restarts it after a crash; the mailbox, an actor of its own, keeps the job that was
being done, so that a restarted group takes it up again from its last checkpoint.
"""

import asyncio
import json
import time
import traceback
from collections.abc import Mapping
from typing import Any

import ray

from trainables.config import RungReport, TrialConfig

RUNG, ENDED, FAILED = "rung", "ended", "failed"
_HEARTBEAT_SECONDS = 1.0


@ray.remote(num_cpus=0)
class Mailbox:
    """Jobs for one worker group, and what it says of them."""

    def __init__(self) -> None:
        self._jobs: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answers: asyncio.Queue[bool] = asyncio.Queue()
        self._current: dict[str, Any] | None = None
        self._closed = False
        self._position = (0, 0)
        self._heard = time.monotonic()
        self._starts = 0

    async def submit(self, job: dict[str, Any] | None) -> None:
        """Queues a job; None ends the group."""
        await self._jobs.put(job)

    async def next_job(self) -> dict[str, Any] | None:
        """The job to do: the unfinished one of a group that was restarted, else the next."""
        self._heard = time.monotonic()
        if self._current is None and not self._closed:
            self._position = (0, 0)
            self._current = await self._jobs.get()
            self._closed = self._current is None
        while not self._answers.empty():
            self._answers.get_nowait()
        return self._current

    async def say(self, event: dict[str, Any]) -> bool:
        """Passes on a rung and returns whether the trial goes on, or passes on how the job ended."""
        self._heard = time.monotonic()
        if event["event"] != RUNG:
            self._current = None
        await self._events.put(event)
        return await self._answers.get() if event["event"] == RUNG else True

    async def beat(self, step: int, steps: int) -> None:
        """A worker is alive, and this far."""
        self._heard, self._position = time.monotonic(), (step, steps)

    async def joined(self) -> int:
        """A group has started; returns how many did before it."""
        self._starts, self._heard = self._starts + 1, time.monotonic()
        return self._starts - 1

    async def event(self, wait: float) -> dict[str, Any] | None:
        """The next event, or None after `wait` seconds."""
        try:
            return await asyncio.wait_for(self._events.get(), wait)
        except TimeoutError:
            return None

    async def answer(self, goes_on: bool) -> None:
        """Answers the last rung."""
        await self._answers.put(goes_on)

    async def status(self) -> dict[str, Any]:
        """Position in the current job, seconds since the workers were heard of, and how often the group started."""
        return {"position": self._position, "silent": time.monotonic() - self._heard, "starts": self._starts}


def worker_loop(config: Mapping[str, Any]) -> None:
    """Runs on every worker of a group, for as long as its slot lives.

    Args:
        config: ``mailbox`` (the actor's handle) and ``threads`` (of one worker on the CPU).
    """
    import torch
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    from trainables.m3 import BaseModels
    from trainables.trial import run_trial

    torch.set_num_threads(int(config["threads"]))
    box, context, base = config["mailbox"], get_context(), BaseModels()
    first = context.get_world_rank() == 0
    if first:
        ray.get(box.joined.remote())
    talker = _Talker(box, first=first, alone=context.get_world_size() == 1)
    while (job := broadcast_from_rank_zero(ray.get(box.next_job.remote()) if first else None)) is not None:
        _work(job, talker, run_trial, base)


class _Talker:
    """What a worker says: rank 0 talks to the mailbox, the others hear its answers."""

    def __init__(self, box: Any, *, first: bool, alone: bool) -> None:
        self._box, self._first, self.alone = box, first, alone
        self._beaten = 0.0

    def rung(self, report: RungReport) -> bool:
        from ray.train.collective import broadcast_from_rank_zero

        event = {"event": RUNG, "report": json.dumps(report.to_dict())}  # Tune would flatten a dictionary
        return bool(broadcast_from_rank_zero(ray.get(self._box.say.remote(event)) if self._first else None))

    def progress(self, step: int, steps: int) -> None:
        if self._first and time.monotonic() - self._beaten >= _HEARTBEAT_SECONDS:
            self._beaten = time.monotonic()
            self._box.beat.remote(step, steps)

    def ended(self) -> None:
        if self._first:
            ray.get(self._box.say.remote({"event": ENDED}))

    def failed(self, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        event = {"event": FAILED, "kind": failure_kind(error), "message": _one_line(error), "traceback": text}
        ray.get(self._box.say.remote(event))


def _work(job: Mapping[str, Any], talker: _Talker, run_trial: Any, base: Any) -> None:
    try:
        run_trial(TrialConfig.from_dict(job), talker.rung, base=base, progress=talker.progress)
    except Exception as error:
        talker.failed(error)
        if not talker.alone:
            raise  # the other workers wait in a collective: only a new group is sound
    else:
        talker.ended()


def failure_kind(error: BaseException) -> str:
    """Returns ``out_of_memory``, ``non_finite`` or ``error``."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in names or "can't allocate memory" in str(error) or "CUDA out of memory" in str(error):
        return "out_of_memory"
    return "non_finite" if names & {"NonFiniteLoss", "NonFiniteScore"} else "error"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
