"""What a frozen encoder makes of held-out texts, computed once and kept for the trials that follow.

With `fix_encoder` every trial has the base model's encoder, and only its heads differ.
"""

from collections.abc import Callable, Hashable

from torch import Tensor

from trainables.memory.host_copies import host_room

_SHARE_OF_MEMORY = 0.25


class HiddenStates:
    """Last hidden states of batches of texts, in host memory.

    Args:
        most_bytes: what is kept at most; batches beyond it are encoded each time. None: a quarter of what is free
            when they come, so that several processes do not exhaust the memory together.
    """

    def __init__(self, most_bytes: int | None = None) -> None:
        self._most = most_bytes
        self._bytes = 0
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
        if self._bytes + states.nbytes <= self._room:
            self._bytes += states.nbytes
            self._kept[batch] = states.cpu()
        return states

    @property
    def _room(self) -> float:
        return _SHARE_OF_MEMORY * host_room() if self._most is None else self._most
