"""A search that is told to end ends in order, leaves nothing behind, and goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from tests.support.m3_fixtures import make_model, make_rows

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(420)]

SECONDS = {signal.SIGINT: 45, signal.SIGTERM: 15, signal.SIGHUP: 45}
"""In which a search ends: after Ctrl-C its trials have 30 to save their state."""


def _started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "tuner.search", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, process_group=0, **pipes)


def _wait_for(process: subprocess.Popen[str], file: Path) -> None:
    """Returns when `file` is there, which the search writes when it begins a trial."""
    deadline = time.monotonic() + 200
    while not file.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{file} was never written"
        time.sleep(0.1)


def _nothing_left_of(children: list[psutil.Process]) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
            return True
        time.sleep(0.5)
    return False


def _to_the_driver(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)


def _to_its_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """As `timeout` does with SIGTERM, which tells the driver twice, and a terminal with Ctrl-C."""
    if number == signal.SIGTERM:
        process.send_signal(number)
    os.killpg(process.pid, number)


@pytest.mark.parametrize(
    ("send", "number", "exit_code"),
    [
        (_to_the_driver, signal.SIGINT, 130),
        (_to_the_driver, signal.SIGTERM, 143),
        (_to_its_group, signal.SIGINT, 130),
        (_to_its_group, signal.SIGTERM, 143),
        (_to_its_group, signal.SIGHUP, 129),
    ],
)
def test_a_stopped_search_goes_on(
    send: Callable[[subprocess.Popen[str], signal.Signals], None],
    number: signal.Signals,
    exit_code: int,
    tmp_path: Path,
) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=200)
    flags = ["--per_device_train_batch_size", "2", "--num_trials", "4", "--gpus_per_trial", "0", "--run_dir", "run"]
    process = _started(tmp_path, "--model_name_or_path", str(model), "--train_data", str(rows), *flags)
    _wait_for(process, tmp_path / "run" / "trials" / "0001" / "config.json")
    children = psutil.Process(process.pid).children(recursive=True)
    told = time.monotonic()
    send(process, number)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == exit_code, rest
    assert time.monotonic() - told < SECONDS[number]
    assert "stopping: what runs saves its state" in rest
    assert f"--resume {tmp_path / 'run'}" in rest
    assert _nothing_left_of(children)

    resumed = _started(tmp_path, "--resume", "run")
    output = resumed.communicate(timeout=300)[0]
    assert resumed.returncode == 0, output
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/run/study.db")
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
    assert all(trial.state.is_finished() for trial in study.trials)
    assert sum(json.loads((tmp_path / "run" / "result.json").read_text())["trials"].values()) == 4
