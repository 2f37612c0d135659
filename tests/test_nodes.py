"""One worker group over two nodes, one of which dies during a trial."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.m3_fixtures import make_model, make_rows
from tuner.study import read_studies

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head and a worker node of one CPU each: two workers do not fit on either."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
    yield nodes
    nodes.shutdown()


def rungs_recorded(run_dir: Path) -> int:
    """Rungs of trained trials in the study so far."""
    if not (run_dir / "study.db").exists():
        return 0
    search, _ = read_studies(run_dir)
    return sum(len(trial.intermediate_values) for trial in search.get_trials(deepcopy=False))


def test_a_trial_outlives_one_of_its_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    second = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=400)
    run_dir = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "tuner.search", "--address", cluster.address, "--run_dir", str(run_dir)),
        *("--model_name_or_path", str(model), "--train_data", str(rows), "--num_trials", "3", "--finalists", "0"),
        *("--gpus_per_trial", "0", "--workers_per_trial", "2", "--per_device_train_batch_size", "1"),
    ]
    log = (tmp_path / "log.txt").open("w")
    with subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as search:
        try:
            _wait_for_rung(run_dir, search, tmp_path / "log.txt")
            cluster.remove_node(second, allow_graceful=False)
            cluster.add_node(num_cpus=1, object_store_memory=100_000_000)  # what an autoscaler would bring
            assert search.wait(600) == 0, (tmp_path / "log.txt").read_text()
        finally:
            search.kill()
    study, _ = read_studies(run_dir)
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"] * 3


def _wait_for_rung(run_dir: Path, search: "subprocess.Popen[bytes]", log: Path) -> None:
    started = time.monotonic()
    while rungs_recorded(run_dir) == 0:
        assert search.poll() is None, log.read_text()
        assert time.monotonic() - started < 300, log.read_text()
        time.sleep(0.5)
