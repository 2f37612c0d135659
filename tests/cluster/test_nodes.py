"""One worker group over two nodes, one of which dies during a trial."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.support.m3_fixtures import make_model, make_rows
from tests.support.namespace_fixtures import HEAD, can_make_namespaces, namespaces
from tuner.errors import RequestError
from tuner.study.study import read_studies

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(570)]


class Machines:
    """A head and a second machine of one CPU each: two workers do not fit on either."""

    def search(self, *arguments: str, log: Path) -> "subprocess.Popen[bytes]":
        """Starts a search on the head."""
        raise NotImplementedError

    def lose_the_second(self) -> None:
        """The second machine dies; a third comes, as an autoscaler would bring it."""
        raise NotImplementedError


@contextmanager
def in_namespaces() -> Iterator[Machines]:
    """Machines with networks of their own."""
    if not can_make_namespaces():
        pytest.skip("network namespaces need root and iproute2")
    with tempfile.TemporaryDirectory(prefix="m3") as folder, namespaces(Path(folder)) as parts:

        class Namespaced(Machines):
            def search(self, *arguments: str, log: Path) -> "subprocess.Popen[bytes]":
                address = ["--address", f"{HEAD}:6379"]
                return parts.run(sys.executable, "-m", "tuner.search", *address, *arguments, log=log)

            def lose_the_second(self) -> None:
                parts.lose(2)
                parts.start_machine(3)

        parts.start_head()
        parts.start_machine(2)
        yield Namespaced()


@contextmanager
def in_ray_utilities() -> Iterator[Machines]:
    """Ray's simulated nodes, which share this machine's network."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
    second = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)

    class Simulated(Machines):
        def search(self, *arguments: str, log: Path) -> "subprocess.Popen[bytes]":
            command = [sys.executable, "-m", "tuner.search", "--address", cluster.address, *arguments]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with log.open("w") as file:
                return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)

        def lose_the_second(self) -> None:
            cluster.remove_node(second, allow_graceful=False)
            cluster.add_node(num_cpus=1, object_store_memory=100_000_000)

    try:
        yield Simulated()
    finally:
        cluster.shutdown()


@pytest.mark.parametrize("machines", [in_namespaces, in_ray_utilities])
def test_a_trial_outlives_one_of_its_two_nodes(machines: object, tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    run_dir, log = tmp_path / "run", tmp_path / "log.txt"
    request = [
        *("--run_dir", str(run_dir), "--model_name_or_path", str(model), "--train_data", str(rows)),
        *("--num_trials", "2", "--finalists", "0", "--gpus_per_trial", "0", "--workers_per_trial", "2"),
        *("--per_device_train_batch_size", "1", "--train_group_size", "4"),
    ]
    with machines() as cluster:  # type: ignore[operator]
        search = cluster.search(*request, log=log)
        try:
            _wait_for_rung(run_dir, search, log)
            cluster.lose_the_second()
            assert search.wait(400) == 0, log.read_text()
        finally:
            search.kill()
            search.wait()
    trial = read_studies(run_dir)[0].trials[1]
    assert trial.state.name == "COMPLETE"
    assert list(trial.intermediate_values) == [1, 2, 3, 4]
    assert trial.user_attrs["retries"][0].startswith("worker_lost: ")


def _wait_for_rung(run_dir: Path, search: "subprocess.Popen[bytes]", log: Path) -> None:
    started = time.monotonic()
    while not (run_dir / "study.db").exists() or not _rungs(run_dir):
        assert search.poll() is None, log.read_text()
        assert time.monotonic() - started < 240, log.read_text()
        time.sleep(0.2)


def _rungs(run_dir: Path) -> int:
    try:
        trials = read_studies(run_dir)[0].get_trials(deepcopy=False)
    except RequestError:  # the search is making it
        return 0
    return sum(len(trial.intermediate_values) for trial in trials)
