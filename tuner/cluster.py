"""The Ray cluster that a search runs on: a local one, started and stopped here, or one that is there already."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from tuner.config import SearchConfig
from tuner.errors import RequestError
from tuner.slot import Slots

_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_worker_niceness": "0",  # training is what the machine is for; Ray would give it the lowest priority
}


@contextmanager
def connected(config: SearchConfig) -> Iterator[None]:
    """Connects to Ray for a block: `--address`, RAY_ADDRESS, or a local cluster that ends with the block."""
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    address = _address(config)
    try:
        ray.init(
            address=address or "local",  # without it, Ray would join a cluster that happens to run here
            num_cpus=None if address else cores(),
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RequestError([f"--address {address}: Ray cannot be reached there: {_one_line(error)}"]) from error
    try:
        yield
    finally:
        ray.shutdown()


def rays_folder(config: SearchConfig, run_dir: Path) -> Path:
    """Returns where Ray keeps its own files: on a cluster where every node sees them, else with its session."""
    if _address(config):
        return run_dir / ".ray"
    return Path(ray.get_runtime_context().get_temp_dir()) / "m3-tuner"


def _address(config: SearchConfig) -> str | None:
    return config.address or os.environ.get("RAY_ADDRESS")


def slots_for(config: SearchConfig, folder: Path) -> Slots:
    """Returns the slots of `config` on the connected cluster.

    Raises:
        RequestError: The cluster has not what they need.
    """
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = config.gpus_per_trial if config.gpus_per_trial is not None else float(have.get("GPU", 0) > 0)
    workers = config.workers_per_trial or max(1, math.ceil(gpus))
    needed = gpus * config.concurrent_trials
    if needed > have.get("GPU", 0):
        raise RequestError(
            [
                f"--gpus_per_trial {gpus:g} x --concurrent_trials {config.concurrent_trials} needs {needed:g} GPUs, "
                f"but the cluster has {have.get('GPU', 0):g}; lower one of them (--gpus_per_trial 0 trains on the CPU)"
            ]
        )
    share = have.get("CPU", 1) / (config.concurrent_trials * workers)
    cpus = float(math.floor(share)) if share >= 1 else share
    return Slots(
        count=config.concurrent_trials,
        workers=workers,
        cpus=min(cpus, 8.0) if gpus else cpus,
        gpus=gpus / workers,
        folder=folder,
    )


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
