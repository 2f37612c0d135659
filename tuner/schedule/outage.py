"""Object storage that workers cannot reach: the search waits for it, and not for ever."""

import math
from collections.abc import Callable

from tuner.interrupts import SearchStopped

_PAUSE_SECONDS = 30.0
_PATIENCE_SECONDS = 1800.0


class Outage:
    """Says when no job can be started because storage is away.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._why = clock, ""
        self._since, self._last = math.inf, -math.inf

    def met(self, why: str) -> None:
        """A job could not bring its files here or there."""
        now = self._clock()
        if now - self._last > _PATIENCE_SECONDS:
            self._since = now  # the one before has passed
        self._last, self._why = now, why

    def passed(self) -> None:
        """A job brought all of its files there."""
        self._last = -math.inf

    def pause(self, running: int) -> str | None:
        """Says why no job is to be started beside the `running` ones; None when it is time to try.

        Raises:
            SearchStopped: Storage has been away for half an hour.
        """
        now = self._clock()
        if now - self._last > _PAUSE_SECONDS:
            return None
        if not running and now - self._since > _PATIENCE_SECONDS:
            raise SearchStopped(self._why)
        return f"paused: {self._why}; the search goes on by itself when it can be reached"
