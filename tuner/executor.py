"""Runs an agenda: in this process, or on Ray in worker groups that outlive trials.

On Ray, Tune places jobs and reuses its actors, Train holds the workers; the agenda says what to do. Tune's own
searchers, schedulers and restore are not used: they keep state that the study would not know of.
"""

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from trainables.config import Progress, Report, RungReport, TrialConfig
from trainables.worker import ENDED, FAILED, RUNG, Mailbox, failure_kind, worker_loop
from tuner.agenda import Agenda, Failure

Train = Callable[[TrialConfig, Report, Progress], None]
"""Trains one job, as `trainables.trial.run_trial` does."""

_POLL_SECONDS = 1.0
_GROUP_RESTARTS = 3
_SLOT_RESOURCES = {"memory": float(2**20)}  # Ray wants some; every CPU is left to the workers
_SILENCE_SECONDS = 600.0


def run_in_process(agenda: Agenda, train: Train) -> None:
    """Runs every job of `agenda` here, one after the other."""
    while (config := agenda.next()) is not None:
        name = config.name
        try:
            train(
                config,
                lambda report, name=name: agenda.rung(name, report),  # type: ignore[misc]
                lambda step, steps, name=name: agenda.progress(name, step, steps),  # type: ignore[misc]
            )
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            agenda.failed(name, Failure(kind=failure_kind(error), message=message))  # type: ignore[arg-type]
        else:
            agenda.ended(name)


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
    folder: Path
    """Ray's own files."""

    @property
    def resources(self) -> dict[str, float]:
        """Of one worker, in Ray's names."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


def run_on_ray(agenda: Agenda, slots: Slots, check: Callable[[], None] = lambda: None) -> None:
    """Runs every job of `agenda` on the connected Ray cluster.

    Args:
        agenda: What to run.
        slots: Where.
        check: Called about every second; what it raises ends the run.

    Raises:
        RuntimeError: Ray could not run the slots.
    """
    _quiet()
    searcher = _AgendaSearcher(agenda, check)
    trainable = tune.with_parameters(_Slot, slots=slots)
    tuner = tune.Tuner(
        tune.with_resources(trainable, _SLOT_RESOURCES),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_AgendaScheduler(searcher),
            num_samples=-1,
            max_concurrent_trials=slots.count,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="slots", storage_path=str(slots.folder.resolve()), verbose=0),
    )
    tuner.fit()


def _quiet() -> None:
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


class _AgendaSearcher(Searcher):
    """Asks the agenda for the next job."""

    def __init__(self, agenda: Agenda, check: Callable[[], None]) -> None:
        super().__init__()
        self.agenda, self.check = agenda, check
        self.names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        self.check()
        config = self.agenda.next()
        if config is None:
            return Searcher.FINISHED if self.agenda.finished else None
        self.names[trial_id] = config.name
        return {"job": config.to_dict()}

    def on_trial_result(self, trial_id: str, result: Any) -> None:
        """The scheduler takes results in."""

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:  # noqa: ARG002
        name = self.names.pop(trial_id, None)
        if name is not None and self.agenda.is_running(name):
            self.agenda.failed(name, Failure(kind="worker_lost", message="the slot's own process ended"))

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study holds the search."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the study holds the search."""


class _AgendaScheduler(FIFOScheduler):
    """Passes what a slot says to the agenda, and the agenda's answer back."""

    def __init__(self, searcher: _AgendaSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        agenda, name = self._searcher.agenda, self._searcher.names[trial.trial_id]
        event = result["event"]
        self._searcher.check()
        if event == "waiting":
            agenda.progress(name, *result["position"])
            return TrialScheduler.CONTINUE
        if event == RUNG:
            goes_on = agenda.rung(name, RungReport.from_dict(json.loads(result["report"])))
            if goes_on:
                return TrialScheduler.CONTINUE
            agenda.ended(name)
        elif event == ENDED:
            agenda.ended(name)
        else:
            agenda.failed(name, Failure(kind=result["kind"], message=result["message"], traceback=result["traceback"]))
        return TrialScheduler.STOP


class _Slot(tune.Trainable):
    """A Tune actor and its worker group. With reused actors, the next job only changes the configuration."""

    def setup(self, config: dict[str, Any], slots: Slots) -> None:  # type: ignore[override]
        self._slots, self._job, self._pending = slots, config["job"], ""
        self._box: Any = Mailbox.remote()  # type: ignore[attr-defined]
        self._start_group()

    def _start_group(self) -> None:
        trainer = TorchTrainer(
            worker_loop,
            train_loop_config={"mailbox": self._box, "threads": max(1, round(self._slots.cpus))},
            scaling_config=ScalingConfig(
                num_workers=self._slots.workers,
                use_gpu=self._slots.gpus > 0,
                resources_per_worker=self._slots.resources,
            ),
            run_config=RunConfig(
                name=f"group-{self.trial_id}",
                storage_path=str(self._slots.folder.resolve()),
                failure_config=FailureConfig(max_failures=_GROUP_RESTARTS),
            ),
        )
        self._group_error: BaseException | None = None
        self._group = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._group.start()

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:
            self._group_error = error

    def step(self) -> dict[str, Any]:
        if self._pending == "":
            ray.get(self._box.submit.remote(self._job))
        elif self._pending == RUNG:
            ray.get(self._box.answer.remote(True))
        result = self._next_event()
        self._pending = result["event"]
        return result

    def _next_event(self) -> dict[str, Any]:
        event = ray.get(self._box.event.remote(_POLL_SECONDS))
        if event is not None:
            return dict(event)
        status = ray.get(self._box.status.remote())
        if not self._group.is_alive():
            return self._lost(f"the worker group ended: {self._group_error or 'without an error'}")
        if status["silent"] > _SILENCE_SECONDS:
            return self._lost(f"the worker group was silent for {status['silent']:.0f} s")
        return {"event": "waiting", "position": status["position"]}

    def _lost(self, message: str) -> dict[str, Any]:
        self._box = Mailbox.remote()  # type: ignore[attr-defined]
        self._start_group()
        return {"event": FAILED, "kind": "worker_lost", "message": " ".join(message.split()), "traceback": message}

    def _stop_current(self) -> None:
        """Ends a job that the scheduler stopped at a rung."""
        if self._pending == RUNG:
            ray.get(self._box.answer.remote(False))
            while self._group.is_alive() and ray.get(self._box.event.remote(_POLL_SECONDS)) is None:
                pass
        self._pending = ""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._stop_current()
        self._job = new_config["job"]
        return True

    def cleanup(self) -> None:
        self._stop_current()
        ray.get(self._box.submit.remote(None))
        self._group.join(30)
        ray.kill(self._box)

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to load: a trial's own folder holds its state."""
