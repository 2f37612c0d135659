"""Saves training states beside the training: copied to the host while it stands, written while it goes on."""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from trainables.trial.states import Capture, States, Stopped

logger = logging.getLogger(__name__)

SAVE_SECONDS = 30.0
"""Training that took less is done again rather than saved."""

SAVE_SHARE = 20.0
"""A state is saved no more often than every so many times what the last one took: 5 % of the time."""

PAUSE_SECONDS = 5.0
"""What took less since the last state is done again when a paused trial is taken up."""

PAUSE_SHARE = 5.0
"""Before a pause, a state may take a fifth of what it spares: about one paused trial in so many is taken up again."""


class Saving:
    """The saves of one trial.

    Args:
        states: where they go.
        clock: seconds, monotonic.
    """

    def __init__(self, states: States, clock: Callable[[], float] = time.perf_counter) -> None:
        self._states, self._clock = states, clock
        self._writing: threading.Thread | None = None
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._ended, self._took = clock(), 0.0

    def __enter__(self) -> "Saving":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for the state that is being written; one of a trial that has ended is given up."""
        if kind is None:
            self._stop.set()
        self._wait()
        if kind is not None and self._error is not None:
            logger.warning("the last training state could not be written: %s", self._error)

    def begin(self) -> None:
        """Counts the time that has passed since the last state from now on."""
        self._ended = self._clock()

    @property
    def is_due(self) -> bool:
        """Whether training anew would cost more than saving does.

        Raises:
            OSError: the last state could not be written.
        """
        if self._writing is not None and self._writing.is_alive():
            return False
        self._join()
        return self._clock() - self._ended >= max(SAVE_SECONDS, SAVE_SHARE * self._took)

    @property
    def is_worth_a_pause(self) -> bool:
        """Whether a trial that may be paused here is to leave its state; one that is being written is waited for.

        Raises:
            OSError: the last state could not be written.
        """
        self._join()
        return self._clock() - self._ended >= max(PAUSE_SECONDS, PAUSE_SHARE * self._took)

    def save(self, step: int, capture: Capture, *, now: bool) -> None:
        """Saves a state; every worker calls it.

        Args:
            step: optimizer steps done.
            capture: see `States.capture`.
            now: come back when it is on the disk; else when it is in the host's memory.

        Raises:
            OSError: this state, or the last one, could not be written.
        """
        self._join()
        began = self._clock()
        write = self._states.capture(step, capture)
        if write is None:
            self._done(began)
            return
        self._writing = threading.Thread(target=self._write, args=(write, began), name="saving")
        self._writing.start()
        if now:
            self._join()

    def finish(self) -> None:
        """Waits for the state that is being written; one that could not be is done without."""
        self._wait()
        if self._error is not None:
            logger.warning("the training state could not be written: %s", self._error)
            self._error = None

    def _write(self, write: Callable[[Callable[[], bool]], None], began: float) -> None:
        try:
            write(self._stop.is_set)
        except Stopped:
            pass
        except BaseException as error:
            self._error = error
        self._done(began)

    def _done(self, began: float) -> None:
        self._ended = self._clock()
        self._took = self._ended - began

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _join(self) -> None:
        self._wait()
        error, self._error = self._error, None
        if error is not None:
            raise error
