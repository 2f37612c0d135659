"""The Ray cluster that a search runs on: a local one, started and stopped here, or one that is there already."""

import functools
import itertools
import logging
import math
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._private.utils import detect_fate_sharing_support
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from tuner.cluster.autoscaling import Prospect, prospect
from tuner.cluster.private_folder import is_private, private_folder
from tuner.cluster.slot import Slots
from tuner.errors import RequestError
from tuner.request.config import SearchConfig
from tuner.run_dir.names import RAY

_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the agenda says them, and the trial's log has them
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_worker_niceness": "0",  # training is what the machine is for; Ray would give it the lowest priority
}

_DESKTOP = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch for clusters that other machines can reach; it is off on desktops, and read on every system."""
_ADDRESS = ray_constants.RAY_ADDRESS_ENVIRONMENT_VARIABLE
_LOGGING: Any = {"log_to_driver": False, "logging_level": logging.ERROR}
_MOST_CPUS = 8.0  # of a worker that trains on a GPU
_BOOT_SECONDS = 1200.0  # a new machine starts and installs in this time
_RAYS_UNITS = 10_000
_OTHERWISE = "change --gpus_per_trial, --workers_per_trial or --concurrent_trials"


@contextmanager
def connected(config: SearchConfig) -> Iterator[None]:
    """Connects to Ray for a block: `--address`, RAY_ADDRESS, or a local cluster that ends with the block.

    A process that is connected already stays so: nothing is ended that was not started here.

    Raises:
        RequestError: Ray cannot be reached or started, or the process is connected to another cluster.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    if ray.is_initialized():
        _require_same(config)
        yield
        return
    address = address_of(config)
    with _on_this_machine() if address is None else _on_cluster(address):
        try:
            yield
        finally:
            ray.shutdown()


def _require_same(config: SearchConfig) -> None:
    here = ray.get_runtime_context().gcs_address
    is_client = ray.util.client.ray.is_connected()  # type: ignore[no-untyped-call]
    if config.address not in (None, "auto", here) and not is_client:
        raise RequestError(
            [
                f"--address {config.address}: this process is connected to Ray at {here} already; leave address out to "
                "search there, or call ray.shutdown() first"
            ]
        )


@contextmanager
def _on_cluster(address: str) -> Iterator[None]:
    with _told(f"--address {address}: Ray cannot be reached there"):
        ray.init(address=address, **_LOGGING)
    yield


@contextmanager
def _on_this_machine() -> Iterator[None]:
    with private_folder() as folder, _on_loopback(), _with_a_token_of_its_own(folder):
        with _told("Ray cannot be started here"), _known_to_its_processes(), _out_of_this_group():
            ray.init(
                address="local",  # without it, Ray would join a cluster that happens to run here
                num_cpus=cores(),
                include_dashboard=False,
                _temp_dir=str(folder / "ray"),  # which Ray opens to everybody
                **_LOGGING,
            )
        yield


@contextmanager
def _told(problem: str) -> Iterator[None]:
    """Tells what keeps Ray from starting as a `RequestError`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        raise RequestError([f"{problem}: {_one_line(error)}"]) from error


@contextmanager
def _with_a_token_of_its_own(folder: Path) -> Iterator[None]:
    """Makes clusters that start in the block answer to a new token only, whatever is set or lies about for others.

    Ray's own goes into ~/.ray, where everybody may read it, and lives on.
    """
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_TOKEN": None}
    try:
        with _environment(own):
            _read_token_again()
            yield
    finally:
        _read_token_again()


def _read_token_again() -> None:
    """Ray keeps mode and token from its first look at them."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _known_to_its_processes() -> Iterator[None]:
    """Gives the processes of a cluster that starts in the block its address.

    Ray Train's placement group cleaner asks for an actor at no address. Beside another cluster it would ask that one,
    not find the actor, and take the workers of a living group away.
    """
    port = _free_port()
    with _environment({ray_constants.GCS_PORT_ENVIRONMENT_VARIABLE: str(port), _ADDRESS: f"127.0.0.1:{port}"}):
        yield


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Sets variables for a block, or unsets them where the value is None."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Makes clusters that start in the block listen on this machine alone, as Ray's do on a desktop."""
    had, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        with _environment({_DESKTOP: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = had


@contextmanager
def _out_of_this_group() -> Iterator[None]:
    """Starts the processes of a cluster in a group of their own.

    ``timeout`` and others send SIGTERM to the search's whole group: Ray would be gone before a trial could save its
    state. That Ray ends with the search does not hang on the group: Linux kills its processes when this one is gone,
    and elsewhere, where a reaper of Ray's kills the group, they stay in it.
    """
    if not detect_fate_sharing_support():  # type: ignore[no-untyped-call]
        yield
        return
    popen = services.ConsolePopen
    services.ConsolePopen = functools.partial(popen, process_group=0)  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        services.ConsolePopen = popen  # type: ignore[misc]


def rays_folder(config: SearchConfig, run_dir: Path) -> Path:
    """Returns where Train and Tune keep their files: where every node of a cluster sees them, else with Ray's own."""
    if address_of(config):
        return run_dir / RAY
    return Path(ray.get_runtime_context().get_temp_dir()) / "m3-tuner"


def address_of(config: SearchConfig) -> str | None:
    """The running cluster that a search is for; None: one that starts and ends with it, as Ray's ``local`` says too.

    One that the process joined before, as in an earlier cell of a notebook, is the search's as well.
    """
    address = config.address or os.environ.get(_ADDRESS) or _joined()
    return None if address == "local" else address


def _joined() -> str | None:
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return None if is_private(Path(context.get_temp_dir())) else str(context.gcs_address)


def slots_for(config: SearchConfig, folder: Path) -> Slots:
    """Returns the slots of `config` on the connected cluster, or on what its autoscaler would make of it.

    Raises:
        RequestError: The cluster has not, and will not have, what they need.
    """
    return fitting_slots(config, folder, prospect(is_own=not address_of(config)))


def fitting_slots(config: SearchConfig, folder: Path, cluster: Prospect) -> Slots:
    """Returns the slots of `config` on `cluster`; errors as `slots_for`'s."""
    gpus = config.gpus_per_trial if config.gpus_per_trial is not None else float(cluster.most("GPU") > 0)
    workers = config.workers
    problems = [
        *_too_few_gpus(config, gpus, cluster),
        *_no_such_accelerator(config, gpus, cluster),
        *_not_one_card_each(gpus, workers),
    ]
    if problems:
        raise RequestError(problems)
    each = _countable(gpus / workers)
    cpus = _cpus_beside_a_gpu(config, each, cluster) if gpus else _share_of_cpus(config, workers, cluster)
    waiting = {"start_seconds": _BOOT_SECONDS} if cluster.grows else {}
    slots = Slots(
        count=config.concurrent_trials,
        workers=workers,
        cpus=cpus,
        gpus=each,
        accelerator_type=config.accelerator_type if gpus else None,
        folder=folder,
        one_machine=address_of(config) is None,
        **waiting,
    )
    _require_places(slots, cluster)
    return slots


def _too_few_gpus(config: SearchConfig, gpus: float, cluster: Prospect) -> list[str]:
    most, needed = cluster.most("GPU"), gpus * config.concurrent_trials
    if needed <= most:
        return []
    has = f"the cluster has {most:g}, its autoscaler's machines counted in" if cluster.grows else f"there are {most:g}"
    return [
        f"--gpus_per_trial {gpus:g} x --concurrent_trials {config.concurrent_trials} needs {needed:g} GPUs, but {has}; "
        "lower one of them (--gpus_per_trial 0 trains on the CPU)"
    ]


def _require_places(slots: Slots, cluster: Prospect) -> None:
    """A worker is on one machine, and a share of a GPU on one card: sums over the cluster do not tell what fits."""
    needed, places = slots.count * slots.workers, cluster.sum(lambda resources: _places(slots, resources))
    if places < needed:
        each = " and ".join(f"{amount:g} {name}" for name, amount in slots.resources.items())
        raise RequestError(
            [
                f"--concurrent_trials {slots.count} x --workers_per_trial {slots.workers}: {needed} workers with "
                f"{each} each must fit, each on one machine, and a share of a GPU on one card, but there are "
                f"{places:g} such places; {_OTHERWISE}"
            ]
        )


def _places(slots: Slots, resources: Mapping[str, float]) -> int:
    """How many workers of `slots` a machine with `resources` has places for."""
    if slots.accelerator_type and f"accelerator_type:{slots.accelerator_type}" not in resources:
        return 0
    by_cpu = _times(slots.cpus, _cpus_of(resources))
    if not slots.gpus:
        return by_cpu
    cards = resources.get("GPU", 0.0)
    return min(by_cpu, _times(slots.gpus, cards) if slots.gpus >= 1 else int(cards) * _times(slots.gpus, 1.0))


def _cpus_of(resources: Mapping[str, float]) -> float:
    """An autoscaler's kind of machine with GPUs need not say its CPUs."""
    return resources.get("CPU", 1.0 if resources.get("GPU") else 0.0)


def _times(amount: float, have: float) -> int:
    """How often `amount` goes into `have`, as Ray counts."""
    return round(have * _RAYS_UNITS) // max(1, round(amount * _RAYS_UNITS))


def _countable(amount: float) -> float:
    """The most of `amount` that Ray can count: whole, or in ten thousandths."""
    return math.floor(round(amount * _RAYS_UNITS, 4)) / _RAYS_UNITS


def _not_one_card_each(gpus: float, workers: int) -> list[str]:
    """NCCL refuses two workers on one card, and a worker trains on one only."""
    if not gpus or gpus / workers == 1 or (workers == 1 and gpus < 1):
        return []
    return [
        f"--gpus_per_trial {gpus:g} and --workers_per_trial {workers}: each worker needs one GPU, or a trial of one "
        f"worker a share of one; give --gpus_per_trial {workers} or --workers_per_trial {max(1, int(gpus))}"
    ]


def _no_such_accelerator(config: SearchConfig, gpus: float, cluster: Prospect) -> list[str]:
    wanted, prefix = config.accelerator_type, "accelerator_type:"
    if wanted is None or cluster.unknown or cluster.kinds(f"{prefix}{wanted}"):
        return [] if gpus or wanted is None else [f"--accelerator_type {wanted} needs GPUs, but --gpus_per_trial is 0"]
    kinds = (*cluster.machines, *cluster.to_come)
    known = sorted({name.removeprefix(prefix) for kind in kinds for name in kind.resources if name.startswith(prefix)})
    return [f"--accelerator_type {wanted}: no machine of the cluster has one; it has {', '.join(known) or 'none'}"]


def _share_of_cpus(config: SearchConfig, workers: int, cluster: Prospect) -> float:
    """The most CPUs for each worker, or workers for each CPU, with which all workers fit on the machines."""
    needed, machines = config.concurrent_trials * workers, [_cpus_of(node.resources) for node in cluster.machines]
    shares = itertools.chain(
        range(math.floor(sum(machines) / needed), 0, -1), (_countable(1 / many) for many in range(2, needed + 1))
    )
    fitting = (share for share in shares if sum(_times(share, cpus) for cpus in machines) >= needed)
    return float(next(fitting, 1.0))


def _cpus_beside_a_gpu(config: SearchConfig, gpus: float, cluster: Prospect) -> float:
    """A worker's part of the CPUs of the machines that have GPUs: the least of them, so that it fits on each."""
    resource = f"accelerator_type:{config.accelerator_type}" if config.accelerator_type else "GPU"
    kinds = [kind.resources for kind in cluster.kinds(resource) if kind.resources.get("GPU")]
    shares = [_cpus_of(kind) / kind["GPU"] * gpus for kind in kinds]
    share = min([_MOST_CPUS, *shares]) if shares else 1.0
    return float(math.floor(share)) if share >= 1 else _countable(share)


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
