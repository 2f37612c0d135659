"""What the processes of a search on one machine listen on while a trial trains: loopback, and nothing else."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.m3_fixtures import make_model, make_rows

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_process_listens_beyond_loopback_while_a_trial_trains(workers: int, tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=400)
    run = tmp_path / "run"
    asked = (
        f"--model_name_or_path {model} --train_data {rows} --run_dir {run} --num_trials 3 --finalists 0 "
        f"--workers_per_trial {workers} --gpus_per_trial 0 --per_device_train_batch_size 2 --negatives_cross_device"
    )
    with (tmp_path / "said.txt").open("w") as said:
        search = subprocess.Popen(
            [sys.executable, "-m", "tuner.search", *asked.split()], cwd=ROOT, env=_plain(), stdout=said, stderr=said
        )
    try:
        seen = _watch(search, run / "trials" / "0001")
        status = search.wait(300)
    finally:
        search.kill()
    assert status == 0, (tmp_path / "said.txt").read_text()
    assert {ip for _, ip in seen} <= {"127.0.0.1", "::1"}, seen
    assert {"gcs_server", "raylet"} <= {name for name, _ in seen}


def _plain() -> dict[str, str]:
    """The environment without what would lead the search to another cluster."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"}


def _watch(search: subprocess.Popen[bytes], trial: Path) -> set[tuple[str, str]]:
    """Every process of a search and address that it listened on, from its start until `trial` has trained."""
    seen: set[tuple[str, str]] = set()
    trained = False
    while search.poll() is None and not trained:
        trained = (trial / "metrics.jsonl").exists()  # looked at first: what follows sees the trial at work
        seen |= _listening(psutil.Process(search.pid))
        time.sleep(0.05)
    assert trained, "the search ended before the trial trained"
    return seen


def _listening(search: psutil.Process) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for process in (search, *search.children(recursive=True)):
        try:
            sockets = process.net_connections("inet")
            name = process.name()
        except psutil.Error:  # it has just ended
            continue
        found |= {(name, one.laddr.ip.removeprefix("::ffff:")) for one in sockets if one.status == psutil.CONN_LISTEN}
    return found
