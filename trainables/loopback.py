"""Process groups of one machine, which no other machine can reach."""

import os
import sys
import zlib
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
_INTERFACES = {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": f"={_LOOPBACK}"}
"""What gloo and NCCL listen on; NCCL takes a name without the sign for a prefix."""


def join_on_this_machine(
    backend: str, meeting: Path | None = None, rank: int = 0, size: int = 1, seconds: float = 1800.0
) -> None:
    """Makes a process group whose workers are all on this machine, and listens to no other.

    torch's own store for a group is a server that listens on every interface and asks nobody who they are, even for a
    group of one. Workers meet in a file here.

    Args:
        backend: gloo or nccl.
        meeting: A new file in a folder that only this user may enter; a group of one needs none.
        rank: This worker's.
        size: Workers of the group.
        seconds: What a worker waits for the others in a collective.
    """
    os.environ.update(_INTERFACES | _named(meeting))
    store = dist.HashStore() if size == 1 else dist.FileStore(str(meeting), size)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=seconds))


def _named(meeting: Path | None) -> dict[str, str]:
    """What DeepSpeed wants to be set, and names its shared memory by: nothing listens at a group that is there."""
    name = f"{meeting or os.getpid()}".encode()
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(10_000 + zlib.crc32(name) % 50_000)}
