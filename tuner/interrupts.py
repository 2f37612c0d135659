"""What ends a search before its time, in order: Ctrl-C, SIGTERM, a closed terminal, a machine that cannot go on."""

import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from tuner.errors import EXIT_HUNG_UP, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_TERMINATED

_EXIT_CODES = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED, signal.SIGHUP: EXIT_HUNG_UP}
_GRACE_SECONDS = {EXIT_INTERRUPTED: 30.0, EXIT_TERMINATED: 1.0, EXIT_HUNG_UP: 30.0, EXIT_STOPPED: 5.0}
_SAME_SECONDS = 0.1
"""Signals that come this close together are one: `timeout` sends its own to the process, and then to its group."""


class Interrupted(BaseException):
    """The search is to end now; nothing that catches errors catches it.

    Args:
        exit_code: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 1 where the machine cannot go on.
        reason: Why, where nobody asked for it.
    """

    def __init__(self, exit_code: int, reason: str = "") -> None:
        super().__init__(reason or f"exit code {exit_code}")
        self.exit_code, self.reason = exit_code, reason
        self.told = False
        """Whether the user has read how to go on."""

    @property
    def farewell(self) -> str:
        """That the search stopped, and why."""
        return f"stopped: {self.reason}" if self.reason else "stopped"

    @property
    def while_saving(self) -> str:
        """What is said until then."""
        return (
            f"stopping: what runs saves its state, for up to {self.grace_seconds:.0f} s; the command to go on follows "
            "(a second Ctrl-C ends it at once)"
        )

    @property
    def grace_seconds(self) -> float:
        """What running trials get to save their state; `ray job stop` kills 3 seconds after its SIGTERM."""
        return _GRACE_SECONDS[self.exit_code]


class SearchStopped(Interrupted):
    """The machine cannot go on: storage lost, disk full, no place for a worker group. What was done is kept."""

    def __init__(self, reason: str) -> None:
        super().__init__(EXIT_STOPPED, reason)


@contextmanager
def interrupting() -> Iterator[None]:
    """Raises `Interrupted` as soon as SIGINT, SIGTERM or SIGHUP comes; a second one ends the process: `_first_signal`.

    For all but the running search, which asks: see `interruptible`. In the main thread.
    """

    def raise_it(number: int) -> None:
        raise Interrupted(_EXIT_CODES[signal.Signals(number)])

    with _first_signal(raise_it):
        yield


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Takes in the first SIGINT, SIGTERM or SIGHUP of a block; a second one ends the process: `_first_signal`.

    Ray's compiled code cannot be left from a signal handler: the loop that runs it asks instead. Entered after Ray was
    connected to, which installs handlers of its own; in the main thread.

    Yields:
        A function that raises `Interrupted` once a signal came, to be called every second or so.
    """
    received: list[int] = []

    def check() -> None:
        if received:
            raise Interrupted(_EXIT_CODES[signal.Signals(received[0])])

    with _first_signal(received.append):
        yield check


@contextmanager
def _first_signal(react: Callable[[int], None]) -> Iterator[None]:
    """Reacts to the first of the signals in a block; a second one ends the process at once.

    A closed terminal sends several SIGHUP: after one the others are ignored, also when the block has ended. Where
    `nohup` has made the process ignore SIGHUP, it stays ignored.
    """
    before = {number: signal.getsignal(number) for number in _EXIT_CODES}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]
    taken: list[int] = []

    def take_in(number: int, _frame: FrameType | None) -> None:
        if taken:
            return
        taken.append(number)
        time.sleep(_SAME_SECONDS)
        for other in before:
            signal.signal(other, signal.SIG_IGN if number == other == signal.SIGHUP else signal.SIG_DFL)
        if number == signal.SIGHUP:
            _leave_the_terminal()
        react(number)

    for number in before:
        signal.signal(number, take_in)
    try:
        yield
    finally:
        for number, handler in before.items():
            if number != signal.SIGHUP or number not in taken:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _leave_the_terminal() -> None:
    """Writes no more to a terminal that is gone, which would fail; what is still there is written to."""
    with Path(os.devnull).open("r+b") as nothing:
        for stream in (0, 1, 2):
            with suppress(OSError):
                if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                    os.dup2(nothing.fileno(), stream)
