"""How far this process is with the corpus it scores a model on. Another thread reads it, so nobody waits for it."""

from collections.abc import Iterator
from contextlib import contextmanager

Position = tuple[str, int, int]
"""What is done with passages (``tokenised``, ``embedded``), with how many so far, and of how many; 0: not known."""


class Tally:
    """Counts passages; one in a process, which scores one model at a time."""

    def __init__(self) -> None:
        self.position: Position | None = None
        """None while nothing is counted."""

    @contextmanager
    def counting(self, what: str, total: int = 0) -> Iterator[None]:
        """Counts from 0 in the block."""
        self.position = (what, 0, total)
        try:
            yield
        finally:
            self.position = None

    def add(self, passages: int) -> None:
        """So many more are done; nothing where they are not counted."""
        if self.position is not None:
            what, done, total = self.position
            self.position = (what, min(done + passages, total) if total else done + passages, total)


TALLY = Tally()
"""Of this process."""
