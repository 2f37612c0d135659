"""A search as a job of a Ray cluster with token authentication, on this machine."""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cluster_fixtures import Head, running_head
from tests.support.m3_fixtures import make_model, make_rows

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with running_head(tmp_path_factory.mktemp("head")) as running:
        yield running


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small search over a tiny model: the base model, the user's settings and a sampled trial."""
    folder = tmp_path_factory.mktemp("data")
    model, rows = make_model(folder / "model"), make_rows(folder / "rows.jsonl", rows=600)
    fixed = "--num_trials 3 --finalists 0 --gpus_per_trial 0 --per_device_train_batch_size 2"
    return ["--model_name_or_path", str(model), "--train_data", str(rows), *fixed.split()]


def submitted(head: Head, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Submits a search with `tuner.cluster.submit.submit` and follows it to its end."""
    code = f"import sys; from tuner.cluster.submit import submit; sys.exit(submit({head.dashboard!r}, sys.argv[1:]))"
    return head.run(sys.executable, "-c", code, *arguments, timeout=600)


def trial_values(run_dir: Path) -> list[tuple[int, float]]:
    with sqlite3.connect(f"file:{run_dir}/study.db?mode=ro", uri=True) as study:
        query = (
            "select number, value from trials join trial_values using (trial_id) join studies using (study_id) "
            "where study_name = 'search' order by number"
        )
        try:
            return list(study.execute(query))
        except sqlite3.OperationalError:  # the search is making it
            return []


def result(run_dir: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run_dir / "result.json").read_text())
    return {key: found[key] for key in ("metric", "verdict", "base", "user", "trials")}


def test_without_the_token_nothing_is_submitted(head: Head) -> None:
    environment = {**head.environment, "RAY_AUTH_MODE": "disabled", "HOME": "/nonexistent"}
    environment.pop("RAY_AUTH_TOKEN_PATH")
    stranger = Head(head.dashboard, environment)
    assert "asks for a token" in submitted(stranger, "--run_dir", "/x").stdout
    assert stranger.job("submit", "--", "true").returncode != 0


def test_submit_status_logs_stop_and_resume(head: Head, command: list[str], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    search = ["--", "python", "-m", "tuner.search", "--address", "auto", *command]

    done = head.job("submit", "--submission-id", "whole", *search, "--run_dir", str(whole), timeout=600)
    assert done.returncode == 0, done.stdout
    assert head.status("whole") == "SUCCEEDED"
    assert "verdict" in head.job("logs", "whole").stdout

    head.job("submit", "--no-wait", "--submission-id", "broken", *search, "--run_dir", str(broken))
    _wait_until(lambda: (broken / "study.db").exists() and len(trial_values(broken)) >= 1)
    assert head.status("broken") == "RUNNING"
    head.job("stop", "broken")
    assert head.status("broken") == "STOPPED"
    assert not (broken / "result.json").exists()

    resumed = submitted(head, "--resume", str(broken))
    assert resumed.returncode == 0, resumed.stdout
    assert result(broken) == result(whole)
    assert trial_values(broken) == trial_values(whole)


def _wait_until(happened: Callable[[], bool], seconds: float = 300) -> None:
    started = time.monotonic()
    while not happened():
        assert time.monotonic() - started < seconds
        time.sleep(0.2)
