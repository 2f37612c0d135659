"""A slot's worker group: processes that outlive trials, fed through a mailbox.

Ray Train starts a group; the mailbox, an actor of its own, outlives it. A group that is lost takes nothing with it: its
job is handed out again, and goes on from the trial's last saved state.
"""

import asyncio
import contextlib
import functools
import itertools
import json
import math
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

import ray

from trainables.config import Progress, Report, RungReport, Train, TrialConfig, TrialInterrupted
from trainables.failures import NonFiniteScore, Planned, failure_kind, one_line
from trainables.tally import TALLY, Position

RUNG, ENDED, FAILED = "rung", "ended", "failed"
_BEAT_SECONDS = 1.0
_CPU_AT_WORK = 0.1  # seconds from beat to beat; the beating itself takes a few milliseconds
_BEATS_A_LOOK = 3


class StaleGroup(RuntimeError):  # noqa: N818
    """The worker belongs to a group that was given up."""


@ray.remote(num_cpus=0)
class Mailbox:
    """One job at a time for one worker group, and what the group says of it."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answer: asyncio.Future[bool] | None = None
        self._job: dict[str, Any] | None = None
        self._closed = self._stopping = self._leaving = False
        self._position: tuple[int, int] = (0, 0)
        self._scoring: Position | None = None
        self._group, self._placement_group = -1, ""
        self._workers: dict[int, Any] = {}
        self._heard: dict[int, float] = {}
        self._busy: dict[int, tuple[float, tuple[int, Position | None], float]] = {}
        """Rank -> when it was last seen at work, where it was then, and the CPU seconds it had used."""

    # The slot's side

    async def expect(self, group: int) -> None:
        """Group number `group` is being started; what an earlier one still says is refused."""
        async with self._changed:
            self._group, self._placement_group, self._job, self._leaving = group, "", None, False
            self._workers, self._heard, self._busy, self._events = {}, {}, {}, asyncio.Queue()
            self._changed.notify_all()

    async def submit(self, job: dict[str, Any]) -> None:
        """Hands a job to the group."""
        async with self._changed:
            self._job, self._position, self._scoring, self._busy = job, (0, 0), None, {}
            self._changed.notify_all()

    async def close(self) -> None:
        """Ends the group when its job is done."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def event(self, wait: float) -> dict[str, Any] | None:
        """The next event, or None after `wait` seconds."""
        try:
            return await asyncio.wait_for(self._events.get(), wait)
        except TimeoutError:
            return None

    async def answer(self, goes_on: bool) -> None:
        """Answers the last rung."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(goes_on)
            self._busy = {}

    async def status(self) -> dict[str, Any]:
        """Position in the job, workers that joined and where, the ranks silent and idle for longest with the seconds.

        Waiting for a job, or for an answer from the search, is not idleness.
        """
        waits = self._job is None or (self._answer is not None and not self._answer.done())
        busy = {} if waits else {rank: when for rank, (when, _, _) in self._busy.items()}
        return {
            "position": self._position,
            "scoring": self._scoring,
            "joined": len(self._workers),
            "placement_group": self._placement_group,
            "silent": _longest_ago(self._heard),
            "idle": _longest_ago(busy),
        }

    async def workers(self) -> list[Any]:
        """Handles of the group's workers."""
        return list(self._workers.values())

    async def stop(self) -> None:
        """Asks the running job to save its state and stop; at a rung, it is told again when the trial is taken up."""
        self._stopping = True
        await self.answer(True)

    async def idle(self) -> None:
        """Waits until no worker has a job."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._job is None or not self._workers)

    # The group's side

    async def join(self, group: int, rank: int, worker: Any, placement_group: str = "") -> None:
        """Worker `rank` has started, in the placement group of that id."""
        self._check(group)
        self._placement_group = placement_group
        self._workers[rank], self._heard[rank] = worker, time.monotonic()

    async def next_job(self, group: int) -> dict[str, Any] | None:
        """The next job; None at the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._job or self._closed or group != self._group)
        self._check(group)
        return self._job

    async def say(self, group: int, event: dict[str, Any]) -> bool:
        """Passes on a rung and returns whether the trial goes on, or passes on how the job ended."""
        self._check(group)
        if self._job is None:  # another worker has said how it ended
            return False
        if event["event"] == RUNG and self._stopping:
            return True
        if event["event"] == RUNG:
            self._answer = asyncio.get_running_loop().create_future()
            await self._events.put(event)
            return await self._answer
        await self._events.put(event)
        await self._forget_job()
        return True

    async def interrupted(self, group: int) -> None:
        """The job has saved its state and stopped, as it was asked to."""
        self._check(group)
        if self._leaving:
            message = "a machine of the group is being taken away; the trial goes on elsewhere"
            await self._events.put({"event": FAILED, "kind": "preempted", "message": message, "traceback": message})
        await self._forget_job()

    async def beat(
        self,
        group: int,
        rank: int,
        step: int,
        steps: int,
        cpu: float,
        leaving: bool = False,
        scoring: Position | None = None,
    ) -> bool:
        """A worker is alive, this far, has used `cpu` seconds, and its machine is `leaving` or not.

        Returns whether its job goes on.
        """
        self._check(group)
        self._heard[rank] = time.monotonic()
        here = (step, scoring)
        since, before, last_cpu = self._busy.get(rank, (self._heard[rank], here, cpu))
        at_work = here != before or cpu - last_cpu > _CPU_AT_WORK
        self._busy[rank] = (self._heard[rank] if at_work else since, here, cpu)
        self._leaving |= leaving
        if rank == 0:
            self._position, self._scoring = (step, steps), scoring
        return not (self._stopping or self._leaving)

    async def _forget_job(self) -> None:
        async with self._changed:
            self._job = None
            self._changed.notify_all()

    def _check(self, group: int) -> None:
        if group != self._group:
            raise StaleGroup(f"group {group} was given up: group {self._group} is in its place")


def _longest_ago(times: Mapping[int, float]) -> tuple[int, float]:
    """Returns the rank with the earliest time, and the seconds since; (0, 0.0) without any."""
    if not times:
        return 0, 0.0
    rank = min(times, key=lambda rank: times[rank])
    return rank, time.monotonic() - times[rank]


def worker_loop(config: Mapping[str, Any]) -> None:
    """Runs on every worker of a group, for as long as its slot lives.

    Args:
        config: ``mailbox`` (the actor's handle), ``group`` (its number), ``threads`` (of one worker on the CPU),
            ``gpus`` (of one worker) and ``train`` (what does a job).
    """
    import torch
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    from trainables.memory.device import limit_to

    torch.set_num_threads(int(config["threads"]))
    if config["gpus"]:
        limit_to(config["gpus"])
    rank, size = get_context().get_world_rank(), get_context().get_world_size()
    talker = _Talker(config["mailbox"], config["group"], rank=rank, alone=size == 1)
    with talker:
        while (job := broadcast_from_rank_zero(talker.next_job())) is not None:
            _work(job, talker, config["train"])


def train_trial(config: TrialConfig, report: Report, progress: Progress) -> None:
    """Runs a trial with the base models that this process has kept from the trials before."""
    from trainables.memory.device import require_gpu
    from trainables.process import spare_what_is_kept
    from trainables.trial.trial import run_trial

    require_gpu(given=bool(ray.get_runtime_context().get_accelerator_ids().get("GPU")))
    spare_what_is_kept()
    run_trial(config, report, base=_base_models(), progress=progress)


@functools.cache
def _base_models() -> Any:
    from trainables.m3.base_models import BaseModels

    return BaseModels()


class _Talker:
    """What a worker says: every one that it is alive; rank 0 what becomes of the job, and the others hear the answers.

    The heart beats in a thread of its own: a long step is no silence, a frozen process is.
    """

    def __init__(self, box: Any, group: int, *, rank: int, alone: bool) -> None:
        self._box, self._group, self._rank, self.alone = box, group, rank, alone
        self._position, self._goes_on = (0, 0), True
        self._end = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "_Talker":
        context = ray.get_runtime_context()
        place = context.get_placement_group_id() or ""
        ray.get(self._box.join.remote(self._group, self._rank, context.current_actor, place))
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()

    def _beat(self) -> None:
        node, leaving = ray.get_runtime_context().get_node_id(), False
        with contextlib.suppress(ray.exceptions.RayError):  # the group was given up, or its slot is gone
            for beat in itertools.count():
                if self._end.wait(_BEAT_SECONDS):
                    return
                leaving = leaving or (beat % _BEATS_A_LOOK == 0 and _is_draining(node))
                here = (*self._position, time.process_time(), leaving, TALLY.position)
                self._goes_on = ray.get(self._box.beat.remote(self._group, self._rank, *here))

    def next_job(self) -> dict[str, Any] | None:
        self._position = (0, 0)
        job: dict[str, Any] | None = ray.get(self._box.next_job.remote(self._group)) if self._rank == 0 else None
        return job

    def rung(self, report: RungReport) -> bool:
        if not math.isfinite(report.value):
            raise NonFiniteScore(f"the score must be finite, but it is {report.value} at rung {report.rung}")
        from ray.train.collective import broadcast_from_rank_zero

        event = {"event": RUNG, "report": json.dumps(report.to_dict())}  # Tune would flatten a dictionary
        return bool(broadcast_from_rank_zero(self._say(event) if self._rank == 0 else None))

    def progress(self, step: int, steps: int) -> bool:
        self._position = (step, steps)
        return self._goes_on

    def ended(self) -> None:
        if self._rank == 0:
            self._say({"event": ENDED})

    def interrupted(self) -> None:
        if self._rank == 0:
            ray.get(self._box.interrupted.remote(self._group))

    def failed(self, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        event: dict[str, Any] = {
            "event": FAILED,
            "kind": failure_kind(error),
            "message": one_line(error),
            "traceback": text,
        }
        if planned := Planned.of(error):  # one by one, as Tune would flatten them
            event |= {"planned_bytes": planned.bytes, "smallest": planned.smallest}
        self._say(event)

    def _say(self, event: dict[str, Any]) -> bool:
        return bool(ray.get(self._box.say.remote(self._group, event)))


def _work(job: Mapping[str, Any], talker: _Talker, train: Train) -> None:
    try:
        train(TrialConfig.from_dict(job), talker.rung, talker.progress)
    except TrialInterrupted:
        talker.interrupted()
    except Exception as error:
        from trainables.process import forget

        talker.failed(error)
        forget(error)
        if not talker.alone:
            raise  # the other workers wait in a collective: only a new group is sound
    else:
        talker.ended()


def _is_draining(node: str) -> bool:
    """Whether a machine is about to be taken away: AWS gives spot machines two minutes' notice, which Ray passes on."""
    from ray._private.state import state  # where Ray Train's own watcher reads it

    return node in state.get_draining_nodes()
