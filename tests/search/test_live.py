"""The live page as a search writes it."""

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

from tests.support.fake import fake_train, new_agenda, open_study
from trainables.config import Progress, Report, RungReport, TrialConfig
from tuner.cluster.executor import run_in_process
from tuner.cluster.machines import described
from tuner.cluster.slot import Slots
from tuner.interrupts import SearchStopped
from tuner.request.config import SearchConfig
from tuner.run_dir.mirror import Mirror
from tuner.run_dir.store import RunStore
from tuner.schedule.agenda import Agenda
from tuner.search.live import LivePage
from tuner.search.provenance import Provenance
from tuner.search.session import Session

CONFIG = SearchConfig(num_trials=4, finalists=0, price_per_hour=36.0)


class _Clock:
    """A second passes each time that one looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def _opened(run_dir: Path, clock: Callable[[], float], config: SearchConfig = CONFIG) -> tuple[LivePage, Agenda]:
    study, store = open_study(config, run_dir), RunStore(str(run_dir), run_dir)
    agenda = new_agenda(config, study, run_dir, clock)
    provenance = Provenance(study, config, Slots(count=1, workers=1, cpus=2.0, gpus=0.0, folder=run_dir))
    session = Session(store=store, console=Console(quiet=True))
    milliseconds = itertools.count()
    clocks = {"clock": clock, "timer": lambda: next(milliseconds) / 1000}  # a page takes a millisecond
    live = LivePage(agenda, study, config, session=session, mirror=Mirror(store), provenance=provenance, **clocks)
    return live, agenda


def _status(run_dir: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((run_dir / "status.json").read_text())
    return read


def _run(live: LivePage, agenda: Agenda, seen: Callable[[], None] = lambda: None) -> None:
    def train(config: TrialConfig, report: Report, progress: Progress) -> None:
        def told(rung: RungReport) -> bool:
            goes_on = report(rung)
            live.look()
            seen()
            return goes_on

        fake_train(config, told, progress)

    run_in_process(agenda, train)


def test_each_rung_is_seen_and_the_end_too(tmp_path: Path) -> None:
    (live, agenda), begun = _opened(tmp_path, _Clock()), list[object]()
    with live:
        assert _status(tmp_path)["sentence"] == "The workers start. Nothing is scored yet. Cost so far 0.01."
        _run(live, agenda, lambda: begun.append(_status(tmp_path)["begun"]))
    assert list(dict.fromkeys(begun))[-3:] == [2, 3, 4]  # the first rungs come before it is time for another page
    assert _status(tmp_path)["state"] == "running"
    (tmp_path / "result.json").write_text(json.dumps(_RESULT))
    live.end()
    last = _status(tmp_path)
    assert (last["state"], last["reason"]) == ("finished", "keep the base model")
    assert len(last["trials"]) == 4


_RESULT = {
    "metric": "dense.ndcg_at_10", "verdict": "keep the base model", "reason": "", "base": None, "user": None,
    "best": None, "trials": {"complete": 4, "pruned": 0, "failed": 0}, "seconds": {"total": 1.0},
}  # fmt: skip


def test_where_only_steps_are_done_it_is_written_less_often(tmp_path: Path) -> None:
    now = [100.0]
    live, _ = _opened(tmp_path, lambda: now[0])
    with live:
        (tmp_path / "status.json").unlink()
        live.look()
        now[0] += 9.0
        live.look()
        assert not (tmp_path / "status.json").exists()
        now[0] += 2.0
        live.look()
        assert (tmp_path / "status.json").exists()


def test_the_study_remembers_where_it_ran_and_what_the_page_cost(tmp_path: Path) -> None:
    for _ in range(2):
        live, agenda = _opened(tmp_path, _Clock())
        with live:
            _run(live, agenda)
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/study.db")
    first, second = study.user_attrs["sessions"]
    assert first["machines"].endswith("no GPU")
    assert first["slots"] == "one trial at a time, on 1 worker with 2 CPUs"
    assert first["versions"].keys() >= {"m3-tuner", "torch", "optuna"}
    assert second["pages"] >= 1
    assert second["page_seconds"] == pytest.approx(0.001)


def test_a_search_that_stops_says_why(tmp_path: Path) -> None:
    live, _ = _opened(tmp_path, _Clock())
    with pytest.raises(SearchStopped), live:
        raise SearchStopped("the disk is full")
    assert (_status(tmp_path)["state"], _status(tmp_path)["reason"]) == ("stopped", "the disk is full")


def test_a_page_that_cannot_be_written_stops_no_search(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "live.html").mkdir()
    live, agenda = _opened(tmp_path, _Clock())
    with caplog.at_level(logging.WARNING), live:
        _run(live, agenda)
    assert agenda.finished
    assert "the live page was not written" in caplog.text


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"CPU": 4.0, "memory": 1e9}, "4 CPUs, no GPU"),
        ({"CPU": 1.0, "GPU": 1.0, "accelerator_type:A10G": 1.0}, "1 CPU, 1 GPU (A10G)"),
        ({"CPU": 16.0, "GPU": 4.0}, "16 CPUs, 4 GPUs"),
    ],
)
def test_machines_of_a_cluster_are_told_by_what_they_have(resources: dict[str, float], words: str) -> None:
    assert described(resources) == words
