"""A search whose data, base model and run directory are on object storage, broken off and taken up on an empty disk."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.m3_fixtures import make_model, make_rows
from tests.support.s3_fixtures import ENVIRONMENT, s3_server

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(580)]

RUN = "s3://bucket/runs/first"
FLAGS = "--num_trials 3 --finalists 0 --gpus_per_trial 0 --per_device_train_batch_size 8"


class Machine:
    """A disk of its own, and the one S3."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder, self.log = folder, folder / "log.txt"
        folder.mkdir()
        self.environment = {
            **os.environ,
            **ENVIRONMENT,
            "AWS_ENDPOINT_URL": endpoint,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tuner.search", *arguments]
        with self.log.open("a") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def python(self, code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env=self.environment, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(scope="module")
def request_on_s3(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command's arguments, all of them URLs."""
    folder = tmp_path_factory.mktemp("inputs")
    make_model(folder / "model"), make_rows(folder / "rows.jsonl", rows=120)
    uploader = Machine(tmp_path_factory.mktemp("uploader") / "machine", endpoint)
    uploader.python(f"from pyarrow.fs import copy_files;copy_files('file://{folder}', 's3://bucket/inputs')")
    inputs = ["--model_name_or_path", "s3://bucket/inputs/model", "--train_data", "s3://bucket/inputs/rows.jsonl"]
    return [*inputs, *FLAGS.split()]


def _stored_rungs(machine: Machine) -> int:
    """Rungs of the study's copy in storage."""
    code = (
        "from tuner.run_dir.store import open_run_dir;"
        f"s = open_run_dir('{RUN}'); found = s.pull(['study.db']);"
        "from tuner.study.study import read_studies;"
        "print(sum(len(t.intermediate_values) for t in read_studies(s.local)[0].trials) if found else 0)"
    )
    return int(machine.python(code))


def test_a_search_outlives_its_machine(endpoint: str, request_on_s3: list[str], tmp_path: Path) -> None:
    whole = Machine(tmp_path / "whole", endpoint)
    assert whole.start(*request_on_s3, "--run_dir", "run").wait(300) == 0, whole.log.read_text()

    first, watcher = Machine(tmp_path / "first", endpoint), Machine(tmp_path / "watcher", endpoint)
    search = first.start(*request_on_s3, "--run_dir", RUN)
    second = Machine(tmp_path / "second", endpoint)
    try:
        _wait_for_rungs(1, search, first, watcher)
        assert second.start("--resume", RUN).wait(120) == 2
        assert f"another search is running there, process {search.pid} on " in second.log.read_text()
    finally:
        search.kill()
        search.wait()
    shutil.rmtree(first.folder / "cache")

    time.sleep(61)  # as long as its lease holds
    assert second.start(*request_on_s3, "--run_dir", RUN).wait(120) == 2
    assert "holds a search already" in second.log.read_text()
    assert second.start("--resume", RUN).wait(300) == 0, second.log.read_text()

    third = Machine(tmp_path / "third", endpoint)
    third.python(f"from tuner.run_dir.store import open_run_dir; assert open_run_dir('{RUN}').pull()")
    (run_dir,) = (third.folder / "cache/m3-tuner/runs").iterdir()
    assert _facts(run_dir) == _facts(whole.folder / "run")
    assert {path.name for path in (run_dir / "best").iterdir()} == {
        path.name for path in (whole.folder / "run/best").iterdir()
    }
    assert "<html" in (run_dir / "report.html").read_text()[:2000]


def _facts(run_dir: Path) -> dict[str, object]:
    result = json.loads((run_dir / "result.json").read_text())
    return {name: result[name] for name in ("metric", "verdict", "base", "user", "trials")} | {
        "best": {name: result["best"][name] for name in ("trial", "params", "dev", "test", "gain", "ci95")}
    }


def _wait_for_rungs(count: int, search: "subprocess.Popen[bytes]", machine: Machine, watcher: Machine) -> None:
    started = time.monotonic()
    while _stored_rungs(watcher) < count:
        assert search.poll() is None, machine.log.read_text()
        assert time.monotonic() - started < 240, machine.log.read_text()
        time.sleep(0.5)
