"""How much of its card this process may have."""

import torch

from trainables.m3.memory import CONTEXT

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


def device_bytes() -> float:
    """Returns what this process can have of its card: its share, or what others have left of a whole one."""
    if _SHARE < 1:
        return _total() * _SHARE
    free, _ = torch.cuda.mem_get_info()
    return min(_total(), free + torch.cuda.memory_reserved() + CONTEXT)


def _total() -> float:
    return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
