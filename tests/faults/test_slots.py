"""Slots on a real cluster: one that cannot start, one whose worker is killed, and one where every trial fails."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.faults.fault_trains import every_trial_fails, faulty, slot_killed_in_trial_1, steady
from tests.support.fake import open_agenda
from tests.support.left_over import left_over
from trainables.config import Train
from tuner.cluster.connection import cores
from tuner.cluster.executor import run_in_process, run_on_ray
from tuner.cluster.slot import Slot, Slots, WorkerGroup, shortage
from tuner.interrupts import SearchStopped
from tuner.request.config import SearchConfig
from tuner.schedule.agenda import Agenda
from tuner.search.conclusion import grouped_causes
from tuner.study.study import read_studies

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
CONFIG = SearchConfig(num_trials=4, finalists=0, sampler="random", pruner="none", rungs=(0.25, 0.5, 1.0))


def _search(run_dir: Path, slots: Slots, train: Train, config: SearchConfig = CONFIG) -> Agenda:
    agenda = open_agenda(config, run_dir)
    run_on_ray(agenda, slots, train=train)
    return agenda


def _trials(run_dir: Path) -> list[tuple[object, ...]]:
    return [(t.number, t.state.name, t.value, t.params) for t in read_studies(run_dir)[0].trials]


def test_a_killed_worker_costs_nothing_but_time(slots: Slots, tmp_path: Path) -> None:
    """Trial 2 is killed before its second rung."""
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    run_in_process(open_agenda(CONFIG, tmp_path / "straight"), steady)
    _search(tmp_path / "killed", slots, faulty, CONFIG.replace(num_trials=3))
    assert _trials(tmp_path / "killed") == _trials(tmp_path / "straight")[:3]
    assert (tmp_path / "killed" / "trials" / "0002" / "worked.txt").read_text().split() == ["1", "2", "2", "3"]
    assert left_over() == {}


@pytest.mark.slow
def test_a_slot_that_dies_gives_back_what_its_group_held(slots: Slots, tmp_path: Path) -> None:
    """One that had every core: the next group cannot start without them."""
    _search(tmp_path, replace(slots, cpus=cores()), slot_killed_in_trial_1, CONFIG.replace(num_trials=3))
    (retry,) = read_studies(tmp_path)[0].trials[1].user_attrs["retries"]
    assert retry.startswith("worker_lost: the slot's own process ended: ")
    assert {state for _, state, *_ in _trials(tmp_path)} == {"COMPLETE"}
    assert left_over() == {}


@pytest.mark.slow
def test_all_trials_fail(slots: Slots, tmp_path: Path) -> None:
    agenda = _search(tmp_path, slots, every_trial_fails)
    assert not agenda.has_winner
    text = grouped_causes(agenda.failures)
    assert "every trial failed (3)" in text
    assert text.count("Traceback") == len({failure.message for failure in agenda.failures})
    assert [state for _, state, *_ in _trials(tmp_path)] == ["COMPLETE", *["FAIL"] * 3]
    assert left_over() == {}


@pytest.mark.parametrize(
    ("total", "free", "words"),
    [
        ({"CPU": 2.0}, {"CPU": 2.0}, "a group needs 2 CPU, 2 GPU, but the cluster has 0 GPU"),
        ({"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}, "a group needs 2 CPU, 2 GPU, but free is 1 GPU"),
        ({"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 4.0}, "or no node has so much for one of the 2"),
    ],
)
def test_what_is_lacking(total: dict[str, float], free: dict[str, float], words: str) -> None:
    assert words in shortage(Slots(count=1, workers=2, cpus=1, gpus=1, folder=Path()), total, free)


def test_where_nothing_is_lacking_on_one_machine_the_workers_start() -> None:
    slots = Slots(count=1, workers=1, cpus=2, gpus=0.5, folder=Path(), one_machine=True)
    has = {"CPU": 8.0, "GPU": 1.0}
    assert shortage(slots, has, has) == (
        "a group needs 2 CPU, 0.5 GPU, and so much is free: its workers are starting (imports)"
    )


def test_a_group_whose_controller_has_no_place_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    slot = object.__new__(Slot)
    status = {"joined": 0, "position": (0, 0), "scoring": None, "silent": (0, 0.0), "idle": (0, 0.0)}
    slot._slots = Slots(count=1, workers=1, cpus=1, gpus=0, folder=Path(), start_seconds=40)
    slot._box = SimpleNamespace(
        event=SimpleNamespace(remote=lambda _: None), status=SimpleNamespace(remote=lambda: status)
    )
    slot._group, slot._waited, over = WorkerGroup(slot._slots, steady, slot._box), 0.0, threading.Event()
    slot._group._thread = threading.Thread(target=lambda: over.wait())
    slot._group._thread.start()
    monkeypatch.setattr("tuner.cluster.slot.ray.get", lambda value: value)
    monkeypatch.setattr(slot._group, "shortage", lambda: "nothing is free")
    said = [slot._next_event() for _ in range(341)]
    over.set()
    assert [event["event"] for event in said] == ["waiting"] * 340 + ["failed"]
    assert (said[-1]["kind"], said[-1]["message"]) == ("no_resources", "no worker group in 341 s: nothing is free")
    assert not slot._group.is_alive  # the next job gets a group of its own


@pytest.mark.slow
def test_a_group_that_cannot_start_says_why(slots: Slots, tmp_path: Path) -> None:
    """The slot itself ends with the search's connection to Ray: this test is the file's last."""
    started = time.monotonic()
    with pytest.raises(SearchStopped, match=r"a group needs 64 CPU, but the cluster has \d+ CPU"):
        _search(tmp_path, replace(slots, workers=64, start_seconds=6), steady)
    assert time.monotonic() - started < 60
    left = left_over(seconds=5)
    assert "CPU" not in left.get("resources", {})
    assert not {"TrainController", "RayTrainWorker"} & set(left.get("actors", []))
    assert _trials(tmp_path)[0][1] == "RUNNING"  # it waits to be taken up again
