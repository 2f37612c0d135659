"""A storage whose server may go away for a while: what is asked of it is asked again until it answers."""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
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
        self._trials: dict[int, int] = {}
        self.check: Callable[[], None] = lambda: None
        """Called between two attempts; what it raises ends the waiting."""

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Creates one trial: of an attempt whose answer was lost, the trial is taken; nobody else writes."""
        known = self._trials[study_id] if study_id in self._trials else self.get_n_trials(study_id)

        def again() -> int:
            made = self.inner.get_all_trials(study_id, deepcopy=False)[known:]
            return made[0]._trial_id if made else self.inner.create_new_trial(study_id, template_trial)

        trial_id = self.ask(self.inner.create_new_trial, study_id, template_trial, again=again)
        self._trials[study_id] = known + 1
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Changes a trial's state; where a later attempt cannot, the one whose answer was lost was taken."""

        def again() -> bool:
            with contextlib.suppress(UpdateFinishedTrialError):
                self.inner.set_trial_state_values(trial_id, state, values)
            return True

        return self.ask(self.inner.set_trial_state_values, trial_id, state, values, again=again)

    def ask(
        self,
        method: Callable[..., _Answer],
        *arguments: Any,
        again: Callable[[], _Answer] | None = None,
        **keywords: Any,
    ) -> _Answer:
        """Returns what `method` returns, once it does.

        Args:
            method: What is asked.
            arguments: Its arguments.
            again: What is asked after an attempt that may have been taken all the same; None: `method`.
            keywords: Its arguments by name.

        Raises:
            SearchStopped: It did not within the time; once that is over, the next time it does not at once.
        """
        lost, pause = 0.0, 0.25
        while True:
            try:
                answer = again() if lost and again else method(*arguments, **keywords)
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
