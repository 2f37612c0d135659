"""How much of its card this process may have."""

import torch

from trainables.memory.step import CONTEXT

_SHARE = 1.0
"""Of a card, for this process."""


def limit_to(share: float) -> None:
    """Keeps this process to its share of a card that others train on as well, CUDA's own part included."""
    global _SHARE
    _SHARE = share
    if torch.cuda.is_available() and share < 1:
        fraction = share - CONTEXT / _total()
        if fraction <= 0:
            raise ValueError(f"a share of a GPU must hold {CONTEXT:.1g} bytes of CUDA's own, but got {share:g}")
        torch.cuda.set_per_process_memory_fraction(fraction)


def require_gpu(*, given: bool) -> None:
    """Refuses to train on the CPU in the place of a GPU that this process was given.

    Raises:
        RuntimeError: PyTorch cannot use it, with its reason: most often a driver that is older than its CUDA.
    """
    if not given or torch.cuda.is_available():
        return
    built = f"PyTorch {torch.__version__} for " + (f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        reason = "it sees no GPU"
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
    raise RuntimeError(
        f"this machine has a GPU, but {built} cannot use it: {reason}; install a PyTorch for a CUDA that is not newer "
        "than the driver's (nvidia-smi names it), or a newer driver"
    )


def device_bytes() -> float:
    """Returns what this process can have of its card: its share, or what others have left of a whole one."""
    if _SHARE < 1:
        return _total() * _SHARE
    free, _ = torch.cuda.mem_get_info()
    return min(_total(), free + torch.cuda.memory_reserved() + CONTEXT)


def _total() -> float:
    return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
