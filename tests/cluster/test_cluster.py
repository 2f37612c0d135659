"""Where trials are placed: on what a cluster has, and on what its autoscaler would bring."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tuner.cluster.autoscaling import NodeType, Prospect, launched
from tuner.cluster.connection import address_of, connected, fitting_slots, rays_folder
from tuner.cluster.slot import Slots, worker_environment
from tuner.errors import RequestError
from tuner.request.config import SearchConfig

HEAD = NodeType(resources={"CPU": 4.0, "node:__internal_head__": 1.0})
A10G = {"CPU": 4.0, "GPU": 1.0, "accelerator_type:A10G": 1.0}
H100 = {"CPU": 96.0, "GPU": 8.0, "accelerator_type:H100": 1.0}
LAUNCHED = {
    "max_workers": 8,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 4}},
        "gpu_on_demand": {"resources": A10G, "max_workers": 8},
        "gpu_spot": {"resources": A10G, "max_workers": 8},
    },
}


def _slots(cluster: Prospect, **options: object) -> Slots:
    return fitting_slots(SearchConfig(**options), Path("/ray"), cluster)  # type: ignore[arg-type]


def _refused(cluster: Prospect, **options: object) -> str:
    with pytest.raises(RequestError) as refused:
        _slots(cluster, **options)
    return str(refused.value)


def test_a_machine_without_gpus_is_shared_out() -> None:
    machine = Prospect(machines=[NodeType(resources={"CPU": 8.0})])
    assert (_slots(machine).cpus, _slots(machine).gpus) == (8, 0)
    assert _slots(machine, concurrent_trials=2, workers_per_trial=2).cpus == 2
    assert _slots(machine, concurrent_trials=16).cpus == 0.5


@pytest.mark.parametrize(
    ("machines", "options", "cpus"),
    [
        ([4, 2], {}, 4),  # not 6, which no machine has
        ([4, 2], {"concurrent_trials": 2}, 2),  # not 3: the second would not fit beside the first, nor on 2
        ([4, 2], {"concurrent_trials": 2, "workers_per_trial": 2}, 1),
        ([4, 2], {"concurrent_trials": 16}, 0.3333),  # three a CPU are 18
        ([2], {"concurrent_trials": 3}, 0.5),  # not 2/3, which Ray counts as 0.6667
        ([1], {"concurrent_trials": 6}, 0.1666),  # Ray counts 6 x 0.1667 as more than 1
        ([0, 4], {}, 4),  # a head without places
    ],
)
def test_a_share_of_cpus_fits_on_a_machine(machines: list[int], options: dict[str, int], cpus: float) -> None:
    cluster = Prospect(machines=[NodeType(resources={"CPU": float(many)} if many else {}) for many in machines])
    assert _slots(cluster, **options).cpus == cpus


def test_a_cluster_without_cpus_has_no_place() -> None:
    assert "1 workers with 1 CPU each must fit" in _refused(Prospect(machines=[NodeType(resources={})]))


def test_a_worker_has_one_gpu() -> None:
    cluster = Prospect(machines=[NodeType(resources=A10G), NodeType(resources=A10G)])
    assert _slots(cluster, gpus_per_trial=2).workers == 2
    mixed = Prospect(machines=[NodeType(resources=A10G), NodeType(resources=H100)])
    assert _slots(mixed, concurrent_trials=4, gpus_per_trial=2).gpus == 1
    assert "are 1 such places" in _refused(mixed, concurrent_trials=2, accelerator_type="A10G")


def test_a_share_of_a_gpu_is_on_one_card() -> None:
    cards = Prospect(machines=[NodeType(resources={"CPU": 8.0, "GPU": 2.0})])
    assert "3 workers with 2 CPU and 0.6 GPU each" in _refused(cards, gpus_per_trial=0.6, concurrent_trials=3)
    assert "are 2 such places" in _refused(cards, gpus_per_trial=0.6, concurrent_trials=3)
    assert _slots(cards, gpus_per_trial=0.6, concurrent_trials=2).gpus == 0.6
    assert _slots(cards, gpus_per_trial=0.5, concurrent_trials=4).cpus == 2


@pytest.mark.parametrize(
    ("gpus", "workers", "remedy"),
    [
        (1, 2, "give --gpus_per_trial 2 or --workers_per_trial 1"),  # NCCL: Duplicate GPU detected
        (2, 1, "give --gpus_per_trial 1 or --workers_per_trial 2"),  # the second card would idle
        (1.5, None, "give --gpus_per_trial 2 or --workers_per_trial 1"),
        (0.5, 2, "give --gpus_per_trial 2 or --workers_per_trial 1"),
    ],
)
def test_workers_that_do_not_have_a_gpu_each_are_refused(gpus: float, workers: int | None, remedy: str) -> None:
    cluster = Prospect(machines=[NodeType(resources=H100)])
    said = _refused(cluster, gpus_per_trial=gpus, workers_per_trial=workers)
    assert said.startswith(f"--gpus_per_trial {gpus:g} and --workers_per_trial {workers or 2}: each worker needs one")
    assert remedy in said


def test_machines_to_come_have_places_too() -> None:
    cluster = launched(LAUNCHED, [HEAD])
    assert _slots(cluster, gpus_per_trial=0.5, concurrent_trials=16).gpus == 0.5


def test_many_slots_say_less_often_where_they_are() -> None:
    """Tune's loop takes in what all slots say, one after the other."""
    machine = Prospect(machines=[NodeType(resources={"CPU": 2000.0})])
    assert [_slots(machine, concurrent_trials=count).poll_seconds for count in (1, 50, 1000)] == [1, 1, 20]


def test_gpus_that_an_autoscaler_would_bring_are_counted() -> None:
    cluster = launched(LAUNCHED, [HEAD])
    assert cluster.most("GPU") == 8  # of spot and on-demand together
    slots = _slots(cluster, concurrent_trials=8)
    assert (slots.gpus, slots.cpus, slots.workers) == (1, 4, 1)
    assert slots.start_seconds > 600  # a machine has to boot and install first
    assert "needs 9 GPUs, but the cluster has 8, its autoscaler's machines counted in" in _refused(
        cluster, concurrent_trials=9
    )


def test_machines_that_came_are_not_counted_twice() -> None:
    assert launched(LAUNCHED, [HEAD, NodeType(resources=A10G)]).most("GPU") == 8


def test_without_an_autoscaler_what_is_there_is_all() -> None:
    cluster = Prospect(machines=[HEAD, NodeType(resources=A10G)])
    assert _slots(cluster).start_seconds < 60
    assert "needs 2 GPUs, but there are 1" in _refused(cluster, concurrent_trials=2)


def test_an_autoscaler_that_does_not_say_what_it_brings_is_trusted() -> None:
    assert _slots(Prospect(machines=[HEAD], unknown=True), gpus_per_trial=2, concurrent_trials=50).workers == 2


def test_trials_are_placed_on_the_kind_of_gpu_that_is_asked_for() -> None:
    cluster = Prospect(machines=[NodeType(resources=A10G), NodeType(resources=H100)])
    assert _slots(cluster).cpus == 4  # fits on either
    slots = _slots(cluster, accelerator_type="H100")
    assert (slots.accelerator_type, slots.cpus) == ("H100", 8)
    assert "no machine of the cluster has one; it has A10G, H100" in _refused(cluster, accelerator_type="T4")
    assert "needs GPUs" in _refused(cluster, accelerator_type="H100", gpus_per_trial=0)
    assert _slots(launched(LAUNCHED, [HEAD]), accelerator_type="A10G").accelerator_type == "A10G"


@pytest.mark.ray
def test_a_cluster_of_the_searchs_own_listens_on_loopback_only() -> None:
    import ray

    with connected(SearchConfig()):
        ray.get(ray.remote(lambda: os.getpid()).remote())  # a worker listens as well
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [
            (process.name(), connection.laddr.ip)
            for process in processes
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert {ip.removeprefix("::ffff:") for _, ip in listening} <= {"127.0.0.1", "::1"}
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ


@pytest.mark.ray
def test_processes_of_a_cluster_of_the_searchs_own_know_which_it_is() -> None:
    import ray

    before = os.environ.get("RAY_ADDRESS")
    with connected(SearchConfig()):
        known = ray.get(ray.remote(lambda: os.environ.get("RAY_ADDRESS")).remote())
        assert known == ray.get_runtime_context().gcs_address
        assert os.environ.get("RAY_ADDRESS") == before


@pytest.mark.ray
def test_a_cluster_of_the_searchs_own_has_a_token_and_a_folder_that_nobody_else_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the shell says of Ray's token, and whatever lies in ~/.ray."""
    import ray

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-another-cluster")
    with connected(SearchConfig()):
        folder = Path(ray.get_runtime_context().get_temp_dir()).parent
        seen = ray.get(ray.remote(lambda: {k: v for k, v in os.environ.items() if k.startswith("RAY_AUTH")}).remote())
        token = Path(seen["RAY_AUTH_TOKEN_PATH"])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert (stat.S_IMODE(token.stat().st_mode), token.parent) == (0o600, folder)
        assert (seen["RAY_AUTH_MODE"], "RAY_AUTH_TOKEN" in seen) == ("token", False)
        assert folder in rays_folder(SearchConfig(), tmp_path).parents
        address, secret = ray.get_runtime_context().gcs_address, token.read_text()
        assert _answers(address, secret)
        assert not _answers(address, None)
        assert not _answers(address, "0" * 64)
    assert not folder.exists()
    assert not (tmp_path / ".ray").exists()
    assert (os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]) == ("disabled", "of-another-cluster")


def _answers(address: str, token: str | None) -> bool:
    """Whether a cluster's control service answers to a process that has `token`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    has = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    code = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10)"
    asked = [sys.executable, "-c", code, address]
    return subprocess.run(asked, env=environment | has, capture_output=True, timeout=60, check=False).returncode == 0


def test_workers_on_gpus_have_what_cuda_reads_when_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments that grow are for a card of one's own: beside others the driver would say that it is full."""
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    determinism = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    assert worker_environment(gpus=1) == determinism | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert worker_environment(gpus=0.5) == determinism
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    assert worker_environment(gpus=1)["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:512"


def test_threads_that_wait_leave_the_core_to_others_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside another process on two cores, training took three times as long as it had to."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert worker_environment(gpus=0) == {"GOMP_SPINCOUNT": "10000"}
    monkeypatch.setenv("GOMP_SPINCOUNT", "500")
    assert worker_environment(gpus=0) == {"GOMP_SPINCOUNT": "500"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert worker_environment(gpus=0) == {}


@pytest.mark.ray
def test_a_cluster_that_the_process_is_in_already_is_joined_and_goes_on(tmp_path: Path) -> None:
    """As in a notebook whose first cell says ``ray.init()``."""
    import ray

    ray.init(num_cpus=1, include_dashboard=False)
    try:
        here = ray.get_runtime_context().gcs_address
        with connected(SearchConfig()):
            assert ray.get_runtime_context().gcs_address == here
            assert address_of(SearchConfig()) == here
            assert rays_folder(SearchConfig(), tmp_path) == tmp_path / ".ray"
        assert ray.is_initialized()
        other = connected(SearchConfig(address="192.0.2.1:6379"))
        with pytest.raises(RequestError, match=f"is connected to Ray at {here} already; leave address out"), other:
            pass
    finally:
        ray.shutdown()


def test_what_the_system_refuses_ray_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(**_: object) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes")

    monkeypatch.setattr(ray, "init", refuse)
    told = pytest.raises(RequestError, match="Ray cannot be started here: AF_UNIX path length")
    with told, connected(SearchConfig()):
        pass
