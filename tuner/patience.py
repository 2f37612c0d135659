"""A storage whose server may go away for a while: what is asked of it is asked again until it answers."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from tuner.interrupts import SearchStopped

_Answer = TypeVar("_Answer")
_PASSING = (OperationalError, InterfaceError, OSError)
_LONGEST_PAUSE = 5.0


def _delegated(name: str) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return self.ask(getattr(self.inner, name), *arguments, **keywords)

    return method


_NAMES = [name for name, value in vars(BaseStorage).items() if callable(value) and not name.startswith("_")]
_Patient: Any = type("_Patient", (BaseStorage,), {name: _delegated(name) for name in _NAMES})


class PatientStorage(_Patient):  # type: ignore[misc]
    """Asks a storage again while its server is away or its disk is full; trials go on training meanwhile.

    Args:
        inner: The storage.
        say: Told once that it is away, and once that it is back.
        seconds: How long to wait in all before the search is stopped, everything that was told before intact.
    """

    def __init__(
        self,
        inner: BaseStorage,
        *,
        say: Callable[[str], None],
        seconds: float = 900.0,
    ) -> None:
        self.inner, self._say, self._seconds = inner, say, seconds
        self._gave_up = False
        self.check: Callable[[], None] = lambda: None
        """Called between two attempts; what it raises ends the waiting."""

    def ask(self, method: Callable[..., _Answer], *arguments: Any, **keywords: Any) -> _Answer:
        """Returns what `method` returns, once it does.

        Raises:
            SearchStopped: It did not within the time; once that is over, the next time it does not at once.
        """
        lost, pause = 0.0, 0.25
        while True:
            try:
                answer = method(*arguments, **keywords)
            except UpdateFinishedTrialError:
                if not lost:
                    raise
                return True  # type: ignore[return-value]  # the attempt that seemed to fail was taken
            except Exception as error:
                if not passes(error):
                    raise
                lost = lost or self._away(error)
                self._wait(lost, pause, error)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if lost:
                    self._say(f"the study's storage is back after {time.monotonic() - lost:.0f} s")
                return answer

    def _away(self, error: Exception) -> float:
        if not self._gave_up:
            self._say(
                f"the study's storage does not answer ({_cause(error)}); running trials go on, and it is asked again "
                f"for {self._seconds:.0f} s"
            )
        return time.monotonic()

    def _wait(self, lost: float, pause: float, error: Exception) -> None:
        if self._gave_up or time.monotonic() - lost > self._seconds:
            self._gave_up = True
            raise SearchStopped(
                f"the study's storage has not answered for {self._seconds:.0f} s ({_cause(error)})"
            ) from error
        until = time.monotonic() + pause
        while time.monotonic() < until:
            self.check()
            time.sleep(0.1)


def passes(error: BaseException) -> bool:
    """Whether a storage's error may pass: no connection, a lock, a full disk; not a broken file or statement."""
    cause = error.__cause__ or error
    return isinstance(cause, _PASSING) or (isinstance(cause, DBAPIError) and cause.connection_invalidated)


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    said = getattr(cause, "orig", None) or cause
    return " ".join(str(said).split())[:200]
