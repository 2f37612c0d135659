"""A machine that is taken away with notice: what ran there is saved, and goes on on another."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

from tests.faults.fault_trains import until_told
from tests.support.fake import open_agenda
from tuner.cluster.executor import run_on_ray
from tuner.cluster.slot import Slots
from tuner.request.config import SearchConfig
from tuner.study.study import read_studies

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

CONFIG = SearchConfig(num_trials=3, finalists=0, pruner="none", rungs=(0.25, 0.5, 1.0))


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without places for workers, and two machines with one place each."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # processes of a node import what this test does
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100_000_000})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def _drain(cluster: Cluster, node: str) -> None:
    """Gives notice to a machine, as AWS does."""
    command = [
        *(str(Path(sys.executable).with_name("ray")), "drain-node", "--address", cluster.address, "--node-id", node),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"),
        *("--deadline-remaining-seconds", "120"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_a_trial_is_saved_on_notice_and_goes_on_elsewhere(nodes: Cluster, tmp_path: Path) -> None:
    slots = Slots(count=1, workers=1, cpus=1, gpus=0, folder=tmp_path / ".ray", start_seconds=90)
    trial_folder = tmp_path / "trials" / "0001"

    nodes_of_helpers: dict[str, str] = {}

    def give_notice() -> None:
        while not (trial_folder / "mark").exists() or not (trial_folder / "mark").read_text():
            time.sleep(0.1)
        nodes_of_helpers.update({a["ActorClassName"]: a["Address"]["NodeID"] for a in actors().values()})
        _drain(nodes, (trial_folder / "mark").read_text())

    notice = threading.Thread(target=give_notice, daemon=True)
    notice.start()
    started = time.monotonic()
    run_on_ray(open_agenda(CONFIG, tmp_path), slots, train=until_told)
    notice.join(60)
    assert time.monotonic() - started < 110  # it did not wait for the machine to be gone

    here = ray.get_runtime_context().get_node_id()
    away = {name for name, node in nodes_of_helpers.items() if node != here}
    assert away <= {"RayTrainWorker", "PreemptionWatcher", "_AutoscalingCoordinatorActor"}  # no slot, nor what it needs

    trial = read_studies(tmp_path)[0].trials[1]
    (retry,) = trial.user_attrs["retries"]
    assert retry.startswith("preempted: a machine of the group is being taken away")
    assert trial.state.name == "COMPLETE"
    assert (trial_folder / "worked.txt").read_text().split() == ["1", "2", "2", "3"]
