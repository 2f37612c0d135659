# ruff: noqa: ARG001 (one signature for all)
"""Train functions that cost nothing and go wrong. They keep a state on disk, as real training does."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ray
import torch

from tests.support.fake import fake_rungs
from trainables.config import Progress, Report, TrialConfig, TrialInterrupted

ALLOWED_BYTES = 600 * 2**20
"""Of the address space, beside what the process has when a job begins."""


def steady(config: TrialConfig, report: Report, progress: Progress) -> None:
    """Reports every rung; those that an earlier attempt has reported are not worked for again."""
    folder = Path(config.directory)
    folder.mkdir(parents=True, exist_ok=True)
    if config.rungs:
        (folder / "checkpoint").mkdir(exist_ok=True)
    state = folder / "resume" / "state.json"
    done = json.loads(state.read_text()) if state.exists() else 0
    for rung in fake_rungs(config):
        if rung.rung > done:
            with (folder / "worked.txt").open("a") as worked:
                worked.write(f"{rung.rung}\n")
        if progress(rung.step, 100) is False:
            raise TrialInterrupted("asked to stop")
        if not report(rung):
            break
        state.parent.mkdir(exist_ok=True)
        state.write_text(json.dumps(rung.rung))


def slow(config: TrialConfig, report: Report, progress: Progress) -> None:
    """As `steady`, a second a rung."""

    def unhurried(rung: object) -> bool:
        time.sleep(1)
        return report(rung)  # type: ignore[arg-type]

    steady(config, unhurried, progress)


def until_told(config: TrialConfig, report: Report, progress: Progress) -> None:
    """As `steady`, but trial 1 trains at the second rung, the first time it stands there, until it is told to stop.

    Its mark is the machine's id.
    """
    mark = Path(config.directory) / "mark"

    def training(step: int, steps: int) -> bool | None:
        if config.name == "0001" and step == 50 and not mark.exists():
            mark.write_text(ray.get_runtime_context().get_node_id())
            while progress(step, steps) is not False:
                time.sleep(0.1)
            return False
        return progress(step, steps)

    steady(config, report, training)


def beside_another(config: TrialConfig, report: Report, progress: Progress) -> None:
    """As `steady`, but trials 1 and 2 wait for each other, and write down the cards that Ray gave them."""
    if config.name in ("0001", "0002"):
        marks = [Path(config.directory).with_name(name) / "gpus" for name in ("0001", "0002")]
        (Path(config.directory) / "gpus").write_text(str(ray.get_gpu_ids()))
        while not all(mark.exists() for mark in marks):
            progress(0, 100)
            time.sleep(0.1)
    steady(config, report, progress)


def faulty(config: TrialConfig, report: Report, progress: Progress) -> None:
    """As `steady`, with a fault of its own in each trial that `FAULTS` names."""
    _count_attempt(config)
    fault = FAULTS.get(config.name)
    if fault is None or not config.rungs:
        steady(config, report, progress)
    else:
        fault(config, report, progress)


def _count_attempt(config: TrialConfig) -> None:
    Path(config.directory).mkdir(parents=True, exist_ok=True)
    with (Path(config.directory) / "attempts.txt").open("a") as attempts:
        attempts.write(f"{config.arguments.get('sub_batch_size')}\n")
    with (Path(config.directory) / "processes.txt").open("a") as processes:
        processes.write(f"{os.getpid()}\n")


def _signalled_once(number: signal.Signals) -> Callable[[TrialConfig, Report, Progress], None]:
    """The worker gets a signal at the second rung, the first time it stands there."""

    def train(config: TrialConfig, report: Report, progress: Progress) -> None:
        mark = Path(config.directory) / "mark"

        def at_second_rung(step: int, steps: int) -> bool | None:
            if step == 50 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), number)
            return progress(step, steps)

        steady(config, report, at_second_rung)

    return train


def _killed_always(config: TrialConfig, report: Report, progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _slot_killed_once(config: TrialConfig, report: Report, progress: Progress) -> None:
    """Kills the Tune actor that holds this worker's slot; the worker dies with it."""
    mark = Path(config.directory) / "mark"
    if not mark.exists():
        mark.touch()
        import psutil

        (slot,) = [p for p in psutil.process_iter(["cmdline"]) if _is_slot_of(p, config)]
        slot.kill()
        time.sleep(60)
    steady(config, report, progress)


def _deadlocked_once(config: TrialConfig, report: Report, progress: Progress) -> None:
    """Waits for itself, alive and for ever, the first time."""
    mark = Path(config.directory) / "mark"
    if not mark.exists():
        mark.touch()
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    steady(config, report, progress)


def _is_slot_of(process: object, config: TrialConfig) -> bool:
    """A slot's process is named after its class, or Tune's wrapping of it; its parent is this worker's own raylet."""
    cmdline = process.info["cmdline"] or [""]  # type: ignore[attr-defined]
    named = any(cmdline[0].startswith(f"ray::{name}") for name in ("Slot", "ResourceTrainable"))
    return named and process.ppid() == os.getppid()  # type: ignore[attr-defined]


def _data_loader_raises(config: TrialConfig, report: Report, progress: Progress) -> None:
    from torch.utils.data import DataLoader, Dataset

    class Rows(Dataset[int]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            if index == 3:
                raise KeyError("row 3 has no 'pos'")
            return index

    for step, _ in enumerate(DataLoader(Rows()), start=1):
        progress(step, 4)


def _other_errors(config: TrialConfig, report: Report, progress: Progress) -> None:
    """Another error at each of the first two attempts, and none at the third."""
    attempt = len((Path(config.directory) / "attempts.txt").read_text().splitlines())
    if attempt < 3:
        raise OSError(f"stale file handle {'ab'[attempt - 1]}")
    steady(config, report, progress)


def _nan_loss(config: TrialConfig, report: Report, progress: Progress) -> None:
    from trainables.failures import NonFiniteLoss

    raise NonFiniteLoss("the training loss must be finite, but it was not at or before step 3")


def _nan_score(config: TrialConfig, report: Report, progress: Progress) -> None:
    from dataclasses import replace

    for rung in fake_rungs(config):
        report(replace(rung, value=float("nan")))


def _needs_memory(bytes_a_passage: int) -> Callable[[TrialConfig, Report, Progress], None]:
    """Allocates for each passage of a sub-batch in a process that may not grow: torch's own allocator refuses."""

    def train(config: TrialConfig, report: Report, progress: Progress) -> None:
        import resource

        values = config.arguments
        passages = values.get("sub_batch_size") or values["per_device_train_batch_size"] * values["train_group_size"]
        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ALLOWED_BYTES, before[1]))
        try:
            torch.empty(bytes_a_passage * passages, dtype=torch.uint8)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        steady(config, report, progress)

    return train


FAULTS: dict[str, Callable[[TrialConfig, Report, Progress], None]] = {
    "0002": _signalled_once(signal.SIGKILL),
    "0003": _signalled_once(signal.SIGSTOP),
    "0004": _killed_always,
    "0005": _data_loader_raises,
    "0006": _data_loader_raises,
    "0007": _other_errors,
    "0008": _nan_loss,
    "0009": _nan_score,
    "0010": _needs_memory(128 * 2**20),
    "0011": _needs_memory(2**40),
    "0012": _slot_killed_once,
    "0013": _deadlocked_once,
}
"""What goes wrong in which trial."""


def slot_killed_in_trial_1(config: TrialConfig, report: Report, progress: Progress) -> None:
    """The slot's own process dies once; every other trial is well."""
    train = _slot_killed_once if config.name == "0001" else steady
    train(config, report, progress)


def every_trial_fails(config: TrialConfig, report: Report, progress: Progress) -> None:
    """The base model is scored, and no trial trains."""
    if config.rungs:
        raise RuntimeError(f"trial {config.name} cannot read its data" if config.name < "0003" else "no such head")
    steady(config, report, progress)


def group_killed_once(config: TrialConfig, report: Report, progress: Progress) -> None:
    """Every worker of the group is killed at the second rung of trial 2, the first time it stands there."""
    from trainables.process import rank

    mark = Path(config.directory) / f"mark-{rank()}"

    def at_second_rung(step: int, steps: int) -> bool | None:
        if config.name == "0002" and step == 50 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return progress(step, steps)

    steady(config, report, at_second_rung)


def long_rung(config: TrialConfig, report: Report, progress: Progress) -> None:
    """A trial whose first rung is far, and which saves its state when asked to stop."""
    if not config.rungs:
        steady(config, report, progress)
        return
    for step in range(1, 10_000):
        time.sleep(0.05)
        if progress(step, 10_000) is False:
            (Path(config.directory) / "saved.txt").write_text(str(step))
            raise TrialInterrupted("asked to stop")


def deaf(config: TrialConfig, report: Report, progress: Progress) -> None:
    """A trial that does not hear that it is to stop."""
    if config.rungs:
        time.sleep(600)
    steady(config, report, progress)
