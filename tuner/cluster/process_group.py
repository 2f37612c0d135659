"""How the workers of a group find each other where all of them are on one machine: in a file, and over loopback."""

from dataclasses import dataclass
from pathlib import Path

import ray
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

from trainables.loopback import join_on_this_machine


@dataclass
class OneMachine(TorchConfig):
    """Ray Train's configuration of torch for a group that other machines have no part in.

    Ray's own has the first worker listen on every interface of its machine, without asking who connects.
    """

    meeting: Path | None = None
    """A file that is not there yet, in a folder that only this user may enter; a group of one worker needs none."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _OneMachineBackend


class _OneMachineBackend(_TorchBackend):
    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, OneMachine)
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        worker_group.execute(_set_torch_distributed_env_vars)
        size = len(worker_group)
        joining = [
            worker_group.execute_single_async(
                rank, join_on_this_machine, backend, backend_config.meeting, rank, size, float(backend_config.timeout_s)
            )
            for rank in range(size)
        ]
        ray.get(joining)  # type: ignore[arg-type]
