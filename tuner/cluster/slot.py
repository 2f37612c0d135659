"""A slot: the Tune actor that holds one worker group, watches over it, and passes on what it says.

A group that is lost, frozen or cannot start is told of within a minute, and what it held is freed; the next job starts
a new one. Whether the lost job is done again is the agenda's to say.
"""

import os
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from trainables.config import Train
from trainables.failures import SOUND, FailureKind, one_line
from trainables.worker.loop import FAILED, RUNG, Mailbox, worker_loop
from tuner.cluster.process_group import OneMachine

WAITING = "waiting"
MAILBOX = "mailbox-"
"""How the names of the slots' mailboxes begin."""

_RESULTS_A_SECOND = 50
"""Of all slots together, so that Tune's loop keeps up; what a worker says comes through at once."""
_END_SECONDS = 30.0
_SAY_SECONDS = 20.0
_NODE_MEMORY = "running low on memory"  # Ray's memory monitor, as it kills a worker
_JOIN_SECONDS = 300.0
"""From a group's place to its first worker: processes start and import, from a cold disk or under load."""
_SPINS = "10000"
"""How long threads of libgomp wait for each other before they sleep; by default 300,000 turns, some 10 ms.

Where others use the same cores, the one that is waited for is often not running, and those that turn keep it from it.
"""
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Whether Train starts a process that asks the nodes whether they are taken away."""


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The places where trials run."""

    count: int
    """Worker groups side by side."""
    workers: int
    """Worker processes of a group."""
    cpus: float
    """CPUs of one worker."""
    gpus: float
    """GPUs of one worker; 0 for a CPU group."""
    accelerator_type: str | None = None
    """The kind of GPU, in Ray's names (A10G); None: any."""
    folder: Path
    """Ray's own files."""
    one_machine: bool = False
    """Whether all workers are on this machine, with `folder` on a disk of its own, which only this user may enter."""
    start_seconds: float = 45.0
    """How long a group waits for the resources it needs; an autoscaler takes minutes to bring them."""
    silence_seconds: float = 45.0
    """A worker that was not heard of for so long is given up: its heart beats every second."""
    idle_seconds: float = 1800.0
    """A worker that lives, but has not come to its next step nor computed anything for so long, is given up as well."""

    @property
    def poll_seconds(self) -> float:
        """How often a slot says where its trial is."""
        return max(1.0, self.count / _RESULTS_A_SECOND)

    @property
    def resources(self) -> dict[str, float]:
        """Of one worker, in Ray's names."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    @property
    def group_resources(self) -> dict[str, float]:
        """Of one worker group, in Ray's names."""
        return {name: self.workers * amount for name, amount in self.resources.items()}


class WorkerGroup:
    """The worker processes of a slot, which Ray Train starts and ends, one group after the other.

    Args:
        slots: How large a group is, and what it may use.
        train: What does a job.
        box: The slot's mailbox.
    """

    def __init__(self, slots: Slots, train: Train, box: Any) -> None:
        self._slots, self._train, self._box = slots, train, box
        self._number, self._thread = 0, threading.Thread()
        self.error: BaseException | None = None
        """What the last group ended with."""

    @property
    def is_alive(self) -> bool:
        """Whether the last group has not ended."""
        return self._thread.is_alive()

    def start(self, trial: str) -> None:
        """Starts a new group, which is called after Tune's trial; it joins when its processes are there."""
        self._number, self.error = self._number + 1, None
        ray.get(self._box.expect.remote(self._number))
        self._thread = threading.Thread(target=self._fit, args=(self._trainer(trial),), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits for its end, but not for ever."""
        self._thread.join(_END_SECONDS)

    def leave(self) -> None:
        """Leaves a group alone whose controller has no place, and so does not end by itself."""
        self._thread = threading.Thread()

    def end_workers(self) -> None:
        """Ends the workers, frozen ones too: Train then frees what the group holds."""
        for worker in ray.get(self._box.workers.remote()):
            ray.kill(worker)
        self.wait()

    def shortage(self) -> str:
        """Says why the group does not start."""
        return shortage(self._slots, ray.cluster_resources(), ray.available_resources())  # type: ignore[no-untyped-call]

    def _trainer(self, trial: str) -> TorchTrainer:
        """A group that fails ends: starting the next one is the slot's part."""
        slots, name = self._slots, f"group-{trial}-{self._number}"
        return TorchTrainer(
            worker_loop,
            train_loop_config={
                "mailbox": self._box,
                "group": self._number,
                "threads": max(1, round(slots.cpus)),
                "gpus": slots.gpus,
                "train": self._train,
            },
            torch_config=self._torch_config(name),
            scaling_config=ScalingConfig(
                num_workers=slots.workers,
                use_gpu=slots.gpus > 0,
                resources_per_worker=slots.resources,
                accelerator_type=slots.accelerator_type,
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(slots.folder.resolve()),
                worker_runtime_env={"env_vars": worker_environment(gpus=slots.gpus)},
                failure_config=FailureConfig(  # type: ignore[call-arg]
                    max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                ),
            ),
        )

    def _torch_config(self, name: str) -> TorchConfig:
        """On a cluster, workers find each other through a port of the first one's machine."""
        if self._slots.workers > 1 and not self._slots.one_machine:
            return TorchConfig()
        return OneMachine(meeting=self._slots.folder.resolve() / f"{name}.meeting")

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:
            self.error = error


class Slot(tune.Trainable):
    """A Tune actor and its worker group. With reused actors, the next job only changes the configuration."""

    def setup(self, config: dict[str, Any], slots: Slots, train: Train) -> None:  # type: ignore[override]
        os.environ[_START_TIMEOUT] = str(slots.start_seconds)
        if slots.one_machine:
            os.environ[_PREEMPTION_WATCHER] = "0"
        self._slots, self._train, self._job, self._pending = slots, train, config["job"], ""
        here = on_node(ray.get_runtime_context().get_node_id())
        self._name, self._placement_group = f"{MAILBOX}{uuid.uuid4()}", ""
        self._box: Any = Mailbox.options(name=self._name, label_selector=here).remote()  # type: ignore[attr-defined]
        self._group, self._waited = self._new_group(), 0.0

    def _new_group(self) -> WorkerGroup:
        return WorkerGroup(self._slots, self._train, self._box)

    def step(self) -> dict[str, Any]:
        if self._pending == "":
            self._begin()
        elif self._pending == RUNG:
            ray.get(self._box.answer.remote(True))
        result = self._next_event()
        self._pending = result["event"]
        self._placement_group = self._placement_group or ray.get(self._box.status.remote())["placement_group"]
        return {**result, "mailbox": self._name, "placement_group": self._placement_group}

    def _begin(self) -> None:
        if not self._group.is_alive:
            self._waited, self._placement_group = 0.0, ""
            self._group.start(self.trial_id)
        ray.get(self._box.submit.remote(self._job))

    # What the group says, and what it does not say

    def _next_event(self) -> dict[str, Any]:
        event = ray.get(self._box.event.remote(self._slots.poll_seconds))
        if event is not None:
            if event["event"] == FAILED:
                self._after_failure(event["kind"])
            return dict(event)
        status = ray.get(self._box.status.remote())
        if not self._group.is_alive:
            return self._not_started() if status["joined"] < self._slots.workers else self._ended()
        for sign, limit in (("silent", self._slots.silence_seconds), ("idle", self._slots.idle_seconds)):
            rank, seconds = status[sign]
            if seconds > limit:
                self._group.end_workers()
                return _failed(
                    "worker_lost", f"worker {rank} of the group was {sign} for {seconds:.0f} s, and was ended"
                )
        self._waited = 0.0 if status["joined"] else self._waited + self._slots.poll_seconds
        if self._waited > self._slots.start_seconds + _JOIN_SECONDS:
            self._group.leave()
            return self._no_group(self._waited)
        note = f"waiting for a worker group: {self._group.shortage()}" if self._waited > _SAY_SECONDS else ""
        return {"event": WAITING, "position": status["position"], "scoring": status["scoring"], "note": note}

    def _after_failure(self, kind: FailureKind) -> None:
        """The next attempt is in a fresh process, unless this one cannot have suffered."""
        if self._slots.workers > 1 and kind != "preempted":
            self._group.wait()  # its workers wait in a collective: Train ends them
        elif kind not in SOUND:
            self._group.end_workers()

    def _not_started(self) -> dict[str, Any]:
        error = self._group.error
        if error is not None and "startup timed out" not in str(error):
            return self._ended()
        return self._no_group(self._slots.start_seconds)

    def _no_group(self, seconds: float) -> dict[str, Any]:
        return _failed("no_resources", f"no worker group in {seconds:.0f} s: {self._group.shortage()}")

    def _ended(self) -> dict[str, Any]:
        error = self._group.error
        kind: FailureKind = "out_of_memory" if _NODE_MEMORY in str(error) else "worker_lost"
        return _failed(kind, f"the worker group ended: {_why(error)}")

    # The end of a job, and of the slot

    def _stop_current(self) -> None:
        """Ends a job that the scheduler stopped at a rung."""
        if self._pending == RUNG:
            ray.get(self._box.answer.remote(False))
            while self._next_event()["event"] == WAITING:
                pass
        self._pending = ""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._stop_current()
        self._job = new_config["job"]
        return True

    def cleanup(self) -> None:
        self._stop_current()
        ray.get(self._box.close.remote())
        if self._group.is_alive:
            self._group.wait()
        ray.kill(self._box)

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to load: a trial's own folder holds its state."""


def worker_environment(*, gpus: float) -> dict[str, str]:
    """Returns what OpenMP, CUDA and PyTorch read when a worker starts; what the user has set stays.

    Args:
        gpus: Of one worker.
    """
    ours = {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": _SPINS}
    if gpus:  # the base model is scored in the same process before a trial asks for determinism
        ours["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if gpus >= 1:  # every step has other shapes; beside others on a card, the driver would run out of memory
        ours["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return {name: os.environ.get(name, value) for name, value in ours.items()}


def on_node(node_id: str) -> dict[str, str]:
    """Returns what makes Ray place something on the node `node_id`."""
    return {"ray.io/node-id": node_id}


def shortage(slots: Slots, total: dict[str, float], free: dict[str, float]) -> str:
    """Says why a worker group of `slots` does not start on a cluster that has `total`, of which `free` is unused."""
    needs = slots.group_resources
    words = ", ".join(f"{amount:g} {name}" for name, amount in needs.items())
    for have, what in ((total, "the cluster has"), (free, "free is")):
        lacking = [name for name, amount in needs.items() if have.get(name, 0.0) < amount]
        if lacking:
            found = ", ".join(f"{have.get(name, 0.0):g} {name}" for name in lacking)
            held = "; a group that has just ended may hold it still" if have is free else ""
            return f"a group needs {words}, but {what} {found}{held}"
    starts = "its workers are starting (imports)"
    why = starts if slots.one_machine else f"{starts}, or no node has so much for one of the {slots.workers}"
    return f"a group needs {words}, and so much is free: {why}"


def _why(error: BaseException | None) -> str:
    """What a group's end is told with: Ray's words for a worker that did not answer name no cause."""
    if error is None:
        return "without an error"
    if "health check failed" in str(error):
        return "a worker was gone, or did not answer; where it did not, the machine may be overloaded"
    return one_line(error)


def _failed(kind: FailureKind, message: str) -> dict[str, Any]:
    return {"event": FAILED, "kind": kind, "message": " ".join(message.split()), "traceback": message}
