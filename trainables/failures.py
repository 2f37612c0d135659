"""What can go wrong in a job, and the kind it is of: known without Ray and without torch."""

from typing import Literal

FailureKind = Literal[
    "out_of_memory", "non_finite", "disk_full", "storage", "error", "worker_lost", "no_resources", "preempted"
]
SOUND: tuple[FailureKind, ...] = ("out_of_memory", "non_finite", "disk_full", "storage")
"""Failures after which a process is as good as new; after any other, CUDA may be beyond repair in it."""
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_BEYOND_REPAIR = ("CUDA error", "gloo/transport/")
"""A device in an unknown state, and another worker that is gone."""
_DISK_FULL = ("No space left on device", "StorageFull", "Disk quota exceeded", "[Errno 28]", "[Errno 122]")


class StorageAway(OSError):  # noqa: N818
    """Object storage or the model hub cannot be reached, or the credentials for it have expired."""


def failure_kind(error: BaseException) -> FailureKind:
    """Tells what an exception of a job stands for; of the device, or of a worker that is gone, it ends the group."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in names or any(sign in str(error) for sign in _OUT_OF_MEMORY):
        return "out_of_memory"
    if names & {"NonFiniteLoss", "NonFiniteScore"}:
        return "non_finite"
    if any(sign in text for text in _chain(error) for sign in _DISK_FULL):
        return "disk_full"
    if "StorageAway" in names:
        return "storage"
    if names & {"DistBackendError", "DistNetworkError"} or any(sign in str(error) for sign in _BEYOND_REPAIR):
        return "worker_lost"
    return "error"


def _chain(error: BaseException | None) -> list[str]:
    """The messages of an exception and of those it came from."""
    return [] if error is None else [str(error), *_chain(error.__cause__ or error.__context__)]


def one_line(error: BaseException) -> str:
    """Returns an exception's name and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class NonFiniteLoss(ArithmeticError):  # noqa: N818
    """A training loss was NaN or infinite: the configuration diverged."""


class NonFiniteScore(ArithmeticError):  # noqa: N818 - named for what happened, like StopIteration
    """A score was NaN or infinite, as after a training that diverged."""
