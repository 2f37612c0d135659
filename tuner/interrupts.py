"""Ctrl-C and SIGTERM: the search ends in order, and says how to go on."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

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
def interruptible() -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM in a block into `Interrupted`; a second one ends the process at once.

    Entered after Ray was connected to, which installs handlers of its own; in the main thread.
    """
    before = {number: signal.getsignal(number) for number in _EXIT_CODES}

    def interrupt(number: int, _frame: FrameType | None) -> Any:
        for other in _EXIT_CODES:
            signal.signal(other, signal.SIG_DFL)
        raise Interrupted(_EXIT_CODES[signal.Signals(number)])

    for number in _EXIT_CODES:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
