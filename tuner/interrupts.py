"""Ctrl-C and SIGTERM: the search ends in order, and says how to go on."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tuner.errors import EXIT_INTERRUPTED, EXIT_TERMINATED

_EXIT_CODES = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}


class Interrupted(BaseException):
    """The search was told to end; nothing that catches errors catches it.

    Args:
        exit_code: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Takes in the first SIGINT or SIGTERM of a block; a second one ends the process at once.

    Ray's compiled code cannot be left from a signal handler: the loop that runs it asks instead. Entered after Ray was
    connected to, which installs handlers of its own; in the main thread.

    Yields:
        A function that raises `Interrupted` once a signal came, to be called every second or so.
    """
    before = {number: signal.getsignal(number) for number in _EXIT_CODES}
    received: list[int] = []

    def take_in(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for other in _EXIT_CODES:
            signal.signal(other, signal.SIG_DFL)

    def check() -> None:
        if received:
            raise Interrupted(_EXIT_CODES[signal.Signals(received[0])])

    for number in _EXIT_CODES:
        signal.signal(number, take_in)
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
