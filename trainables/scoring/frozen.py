"""What a frozen encoder makes of held-out texts, computed once and kept for the trials that follow.

With `fix_encoder` every trial has the base model's encoder, and only its heads differ.
"""

from collections.abc import Callable, Hashable

import psutil
from torch import Tensor

_SHARE_OF_MEMORY = 0.25


class HiddenStates:
    """Last hidden states of batches of texts, in host memory.

    Args:
        most_bytes: what is kept at most; batches beyond it are encoded each time. None: a quarter of the free memory.
    """

    def __init__(self, most_bytes: int | None = None) -> None:
        available = int(psutil.virtual_memory().available * _SHARE_OF_MEMORY)
        self._room = available if most_bytes is None else most_bytes
        self._kept: dict[Hashable, Tensor] = {}

    def of(self, batch: Hashable, encode: Callable[[], Tensor]) -> Tensor:
        """Returns what `encode` does, without calling it for a batch that is kept.

        Args:
            batch: identifies the texts and their padding.
            encode: computes (texts, length, size).
        """
        if batch in self._kept:
            return self._kept[batch]
        states = encode()
        if states.nbytes <= self._room:
            self._room -= states.nbytes
            self._kept[batch] = states.cpu()
        return states
