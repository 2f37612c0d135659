"""Runs an agenda: in this process, or on Ray in worker groups that outlive trials.

On Ray, Tune places jobs and reuses its actors, Train holds the workers; the agenda says what to do. Tune's own
searchers, schedulers and restore are not used: they keep state that the study would not know of.
"""

import contextlib
import json
import logging
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from trainables.config import RungReport, Train
from trainables.failures import Planned, failure_kind, one_line
from trainables.worker.loop import ENDED, RUNG, train_trial
from tuner.cluster.orphans import OrphanedGroups
from tuner.cluster.slot import MAILBOX, WAITING, Slot, Slots, on_node
from tuner.interrupts import Interrupted
from tuner.schedule.agenda import Agenda
from tuner.schedule.retries import Failure

_SLOT_RESOURCES = {"memory": float(2**20)}  # Ray wants some; every CPU is left to the workers


def run_in_process(agenda: Agenda, train: Train, check: Callable[[], None] = lambda: None) -> None:
    """Runs every job of `agenda` here, one after the other; arguments as for `run_on_ray`."""
    while (config := agenda.next()) is not None:
        check()
        name = config.name
        try:
            train(
                config,
                lambda report, name=name: agenda.rung(name, report),  # type: ignore[misc]
                lambda step, steps, name=name: agenda.progress(name, step, steps),  # type: ignore[misc]
            )
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            kind, message, planned = failure_kind(error), one_line(error), Planned.of(error)
            agenda.failed(name, Failure(kind=kind, message=message, traceback=text, planned=planned))
        else:
            agenda.ended(name)


def run_on_ray(
    agenda: Agenda, slots: Slots, check: Callable[[], None] = lambda: None, *, train: Train = train_trial
) -> None:
    """Runs every job of `agenda` on the connected Ray cluster.

    Args:
        agenda: What to run.
        slots: Where.
        check: Called several times a second; what it raises ends the run.
        train: What does a job, on every worker of a group.

    Raises:
        RuntimeError: Ray could not run the slots.
    """
    _quiet()
    searcher = _AgendaSearcher(agenda)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(Slot, slots=slots, train=train), _beside_the_driver()),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_AgendaScheduler(searcher),
            num_samples=-1,
            max_concurrent_trials=slots.count,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="slots",
            storage_path=str(slots.folder.resolve()),
            verbose=0,
            callbacks=[_Checks(check)],
            progress_reporter=tune.CLIReporter(),  # the one for notebooks clears what the cell has shown
        ),
    )
    try:
        tuner.fit()
    except Interrupted as interrupted:
        agenda.note = interrupted.while_saving
        _save_running(interrupted.grace_seconds)
        with contextlib.suppress(Interrupted):  # the study's storage may be what is away
            agenda.remember_time()
        raise


def _beside_the_driver() -> tune.PlacementGroupFactory:
    """Where slots are, and all that Train keeps beside its workers: the search needs the driver's machine anyway."""
    node = on_node(ray.get_runtime_context().get_node_id())
    return tune.PlacementGroupFactory([_SLOT_RESOURCES], bundle_label_selector=[node])


def _save_running(seconds: float) -> None:
    """Gives running trials `seconds` to save their state."""
    with contextlib.suppress(ray.exceptions.RayError):
        names = [name for name in ray.util.list_named_actors() if name.startswith(MAILBOX)]
        boxes = [ray.get_actor(name) for name in names]
        ray.get([box.stop.remote() for box in boxes], timeout=seconds)
        ray.get([box.idle.remote() for box in boxes], timeout=seconds)


def _quiet() -> None:
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _failure(result: Mapping[str, Any]) -> Failure:
    planned = None
    if "planned_bytes" in result:
        planned = Planned(bytes=result["planned_bytes"], smallest=result["smallest"])
    return Failure(kind=result["kind"], message=result["message"], traceback=result["traceback"], planned=planned)


class _Checks(tune.Callback):
    """Looks for interruptions at every turn of Tune's loop, whether a slot says anything or not."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:  # noqa: ARG002
        self._check()


class _AgendaSearcher(Searcher):
    """Asks the agenda for the next job. Tune pickles it, and nobody reads that: there is nothing in it."""

    def __init__(self, agenda: Agenda) -> None:
        super().__init__()
        self.agenda = agenda
        self.names: dict[str, str] = {}
        self.orphans = OrphanedGroups()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def suggest(self, trial_id: str) -> Any:
        self.orphans.sweep()
        config = self.agenda.next()
        if config is None:
            return Searcher.FINISHED if self.agenda.finished else None
        self.names[trial_id] = config.name
        return {"job": config.to_dict()}

    def on_trial_result(self, trial_id: str, result: Any) -> None:
        """The scheduler takes results in."""

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:  # noqa: ARG002
        self.names.pop(trial_id, None)

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
        self._searcher.orphans.told(result["mailbox"], result["placement_group"])
        self._searcher.orphans.sweep()
        if event == WAITING:
            agenda.progress(name, *result["position"], scoring=result["scoring"], note=result["note"])
            return TrialScheduler.CONTINUE
        if event == RUNG:
            goes_on = agenda.rung(name, RungReport.from_dict(json.loads(result["report"])))
            if goes_on:
                return TrialScheduler.CONTINUE
            agenda.ended(name)
        elif event == ENDED:
            agenda.ended(name)
        else:
            agenda.failed(name, _failure(result))
        return TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:  # noqa: ARG002
        """The slot's own process is gone, and its worker group with it."""
        self._searcher.orphans.slot_died()
        name, error_file = self._searcher.names.get(trial.trial_id), trial.error_file
        if name is not None and self._searcher.agenda.is_running(name):
            text = Path(error_file).read_text("utf-8").strip() if error_file else ""
            message = " ".join(f"the slot's own process ended: {text.rpartition('Error: ')[2]}".split())
            failure = Failure(kind="worker_lost", message=message[:500], traceback=text)
            self._searcher.agenda.failed(name, failure)
