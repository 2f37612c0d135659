"""The recorder: what it draws, and that a recording goes on where it stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.record_data import CONFIGURATIONS, RANGES, TASKS, draw_configurations, full_steps
from benchmarks.record_table import CONSTANT, Counts, jobs
from benchmarks.recorded_table import RecordedTable

ROOT = Path(__file__).parents[2]
WORDS = [f"word{number}" for number in range(40)]


def test_configurations_are_drawn_the_same_again_and_reach_both_ends_of_every_range() -> None:
    drawn = draw_configurations()
    assert drawn == draw_configurations()
    assert len(drawn) == CONFIGURATIONS
    for name, (low, high) in RANGES.items():
        values = [each[name] for each in drawn]
        assert low <= min(values) < 2 * low
        assert high / 2 < max(values) <= high
        assert sum(value < (low * high) ** 0.5 for value in values) == pytest.approx(CONFIGURATIONS / 2, abs=8)


def test_steps_are_counted_as_transformers_counts_them() -> None:
    """600 rows in batches of 64 are 10 steps an epoch, the last of 24 rows; pubmedqa has two epochs."""
    assert full_steps("pubmedqa", 600, 64) == 20
    assert full_steps("docstrings", 2000, 4) == 500


def test_full_runs_of_all_tasks_come_first() -> None:
    order = list(jobs(Counts()))
    assert len(order) == len(set(order)) == len(TASKS) * (1 + 128 + 2 * 48 + 2 * 16 + 32)
    assert [job.config for job in order[: len(TASKS)]] == [-1] * len(TASKS)
    full = order[len(TASKS) : 97 * len(TASKS)]
    assert {(job.budget, job.schedule, job.seed) for job in full} == {(1.0, "linear", 42)}
    assert {job.task for job in full[: len(TASKS)]} == set(TASKS)
    assert {job.schedule for job in order} == {"linear", CONSTANT}


@pytest.mark.slow
def test_a_recording_goes_on_where_it_stopped(tmp_path: Path) -> None:
    datasets = tmp_path / "datasets"
    for name in ("pubmedqa", "nq_qed"):
        _write_task(datasets / name)
    _run("--prepare", str(tmp_path / "data"), "--datasets", str(datasets))
    recording = ("--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--tiny")
    first = _run(*recording)
    assert first["runs"] == first["of"] == len(TASKS) * 9
    assert first["failed"] == 0
    for task in TASKS:
        table = RecordedTable.load(tmp_path / "out" / f"{task}.npz")
        full = table.rows()
        assert not np.isnan(table.dev[full]).any()
        assert not np.isnan(table.test[full]).any()
        short = table.rows(budget=1 / 16)
        assert (np.isnan(table.means("test")[short]) == [False, True, True, True, True]).all()
        assert sorted(table.seed[full].tolist()) == [42, 42, 42, 43, 44]
        assert len(table.rows(schedule=CONSTANT)) == 1
    journal = tmp_path / "out" / "journal.jsonl"
    kept = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(kept[:-1]) + kept[-1][:20])
    assert _run(*recording)["runs"] == first["of"]
    assert len(journal.read_text().splitlines()) == len(kept)


def _run(*arguments: str) -> dict[str, int]:
    command = [sys.executable, "benchmarks/record_table.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    return dict(json.loads(lines[-1])) if lines else {}


def _write_task(folder: Path) -> None:
    import lzma

    (folder / "qrels").mkdir(parents=True)
    texts = [" ".join(WORDS[(number + step * step) % 40] for step in range(12)) for number in range(40)]
    rows = [
        {"query": text[:30], "pos": [text], "neg": texts[:number][-15:] or texts[20:24]}
        for number, text in enumerate(texts)
    ]
    (folder / "train.jsonl.xz").write_bytes(lzma.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    corpus = ({"_id": f"p{number}", "title": "", "text": text} for number, text in enumerate(texts))
    queries = ({"_id": f"q{number}", "text": text[10:50]} for number, text in enumerate(texts[:20]))
    for name, lines in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for split, numbers in (("dev", range(10)), ("test", range(10, 20))):
        judged = "".join(f"q{number}\tp{number}\t1\n" for number in numbers)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
