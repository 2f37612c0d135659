"""What a trial has reported, and the time it took."""

import math
from pathlib import Path

import pytest

from trainables.config import RungReport, TrialConfig
from trainables.trial.records import Clock, Reported, read_records, write_record


def report(rung: int) -> RungReport:
    return RungReport(
        rung=rung,
        fraction=rung / 2,
        step=5 * rung,
        examples=20 * rung,
        loss=1.5,
        value=0.25,
        scores={"dense.ndcg_at_10": 0.25},
        last=rung == 2,
        seconds={"training": 1.0, "scoring": 2.0, "overhead": 3.0},
    )


def test_a_line_that_was_cut_short_is_removed(tmp_path: Path) -> None:
    assert read_records(tmp_path) == []
    for rung in (1, 2):
        write_record(tmp_path, report(rung))
    assert read_records(tmp_path) == [report(1), report(2)]
    lines = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(lines[:-20])
    assert read_records(tmp_path) == [report(1)]
    write_record(tmp_path, report(2))
    assert read_records(tmp_path) == [report(1), report(2)]


def test_a_rung_is_due_once_and_several_where_steps_are_few(tmp_path: Path) -> None:
    config = TrialConfig(
        name="0001",
        directory=str(tmp_path),
        arguments={},
        eval_data="",
        metric="dense.ndcg_at_10",
        rungs=(0.125, 0.25, 1.0),
    )
    anew = Reported(config, Clock(), batch_size=4)
    assert [anew.due(step, steps=17) for step in (2, 3, 4, 5, 17)] == [[], [1], [1], [1, 2], [1, 2, 3]]
    assert anew.best == -math.inf
    taken_up = Reported(config, Clock(), batch_size=4, done=[report(1)])
    assert [taken_up.due(step, steps=17) for step in (4, 5, 17)] == [[], [2], [2, 3]]
    assert taken_up.best == 0.25
    assert [taken_up.is_last(rung) for rung in (1, 2, 3)] == [False, False, True]


def test_a_clock_goes_on_from_what_was_spent() -> None:
    clock = Clock()
    clock.go_on_from({"training": 10.0, "scoring": 20.0, "overhead": 30.0})
    clock.add("training", 5.0)
    seconds = clock.seconds
    assert (seconds["training"], seconds["scoring"]) == (15.0, 20.0)
    # the 5 seconds were not really spent, so they are missing from the rest
    assert seconds["overhead"] == pytest.approx(25.0, abs=0.5)
