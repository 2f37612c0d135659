"""Copies of tensors in the host's memory, made while a device stands and written while it goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

_ROOM = 2.0
"""A copy is made where this many of it would fit: others train, read and write on the machine as well."""
_ROOM_TO_PIN = 4.0
"""Memory that is pinned cannot be given to anyone else."""
_CONTROL_GROUP = Path("/sys/fs/cgroup")


class HostCopies:
    """Makes copies of nested tensors, each time into the same memory."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def of(self, value: Any) -> Any:
        """Returns a copy of a value: tensors in mappings, lists and tuples; what else there is as it is.

        It is overwritten by the next call. None where the host has no room for one.
        """
        size = sum(tensor.nbytes for tensor in _tensors(value))
        held = sum(buffer.nbytes for buffer in self._buffers.values())
        room = host_room() if size > held else float("inf")
        if room < _ROOM * (size - held):
            return None
        self._pinned = room >= _ROOM_TO_PIN * (size - held)
        copied = self._copy(value, ())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied

    def _copy(self, value: Any, place: tuple[Any, ...]) -> Any:
        if isinstance(value, Tensor):
            return self._buffer(value.detach(), place).copy_(value.detach(), non_blocking=True)
        if isinstance(value, Mapping):
            return {name: self._copy(part, (*place, name)) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self._copy(part, (*place, number)) for number, part in enumerate(value)])
        return value

    def _buffer(self, tensor: Tensor, place: tuple[Any, ...]) -> Tensor:
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            pinned = self._pinned and tensor.device.type == "cuda"
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
            self._buffers[place] = buffer
        return buffer


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def host_room() -> float:
    """Returns the bytes of memory that are free on this machine, or in this process's container."""
    free = float(psutil.virtual_memory().available)
    limit, used = (_number(_CONTROL_GROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, limit - used + _file_cache())


def _file_cache() -> float:
    """Returns the bytes of files that the container's kernel keeps and would give up."""
    try:
        lines = (_CONTROL_GROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0.0)


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # no such control group, or no limit
        return None
