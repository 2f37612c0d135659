"""What can go wrong in a job, and the kind it is of: known without Ray and without torch."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

FailureKind = Literal[
    "out_of_memory", "non_finite", "disk_full", "storage", "error", "worker_lost", "no_resources", "preempted"
]
SOUND: tuple[FailureKind, ...] = ("out_of_memory", "non_finite", "disk_full", "storage")
"""Failures after which a process is as good as new; after any other, CUDA may be beyond repair in it."""
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|CU\w+_ALLOC\w*_FAILED|CUSPARSE_STATUS_INSUFFICIENT_RESOURCES|"
    r"CUBLAS_STATUS_NOT_INITIALIZED",
    re.IGNORECASE,
)
"""What PyTorch's allocators, the driver (as NCCL and segments that grow meet it) and CUDA's libraries say. cuBLAS has
not been initialised where there was no memory for its handle."""
_BEYOND_REPAIR = ("CUDA error", "gloo/transport/")
"""A device in an unknown state, and another worker that is gone."""
_DISK_FULL = ("No space left on device", "StorageFull", "Disk quota exceeded", "[Errno 28]", "[Errno 122]")


class StorageAway(OSError):  # noqa: N818
    """Object storage or the model hub cannot be reached, or the credentials for it have expired."""


def failure_kind(error: BaseException) -> FailureKind:
    """Tells what an exception of a job stands for; of the device, or of a worker that is gone, it ends the group."""
    names = _names(error)
    if names & {"NonFiniteLoss", "NonFiniteScore"}:
        return "non_finite"
    if any("OutOfMemoryError" in _names(each) or _OUT_OF_MEMORY.search(str(each)) for each in chain(error)):
        return "out_of_memory"
    if any(sign in str(each) for each in chain(error) for sign in _DISK_FULL):
        return "disk_full"
    if "StorageAway" in names:
        return "storage"
    if names & {"DistBackendError", "DistNetworkError"} or any(sign in str(error) for sign in _BEYOND_REPAIR):
        return "worker_lost"
    return "error"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception and those that it came from."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a training step that has failed was planned to take of its device (`m3.memory`)."""

    bytes: float
    smallest: bool
    """No other way to compute it takes less."""

    def mark(self, error: BaseException) -> None:
        """Lets an exception of the step be known by this."""
        error._planned = self  # type: ignore[attr-defined]

    @staticmethod
    def of(error: BaseException) -> "Planned | None":
        """Returns what an exception, or one that it came from, was marked with."""
        found: list[Planned] = [each._planned for each in chain(error) if hasattr(each, "_planned")]
        return found[0] if found else None


def one_line(error: BaseException) -> str:
    """Returns an exception's name and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class NonFiniteLoss(ArithmeticError):  # noqa: N818
    """A training loss was NaN or infinite: the configuration diverged."""


class NonFiniteScore(ArithmeticError):  # noqa: N818 - named for what happened, like StopIteration
    """A score was NaN or infinite, as after a training that diverged."""
