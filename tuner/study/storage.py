"""Where a study is kept, its one writer's memory of it, and its patience with a server that is away for a while."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from trainables.files import append_line
from tuner.errors import RequestError
from tuner.interrupts import SearchStopped
from tuner.request.storage_url import PASSWORD_VARIABLE, is_journal, path_of, redacted, whole
from tuner.run_dir.names import STUDY_FILE

_DRIVERS: Mapping[str, Sequence[tuple[str, str]]] = {
    "postgresql": (("psycopg", "postgresql+psycopg"), ("psycopg2", "postgresql+psycopg2")),
    "mysql": (("MySQLdb", "mysql+mysqldb"), ("pymysql", "mysql+pymysql")),
}
"""Scheme -> modules that can serve it, and how SQLAlchemy names them."""
_OPENING = b'{"op_code":'
"""How Optuna begins each line of a journal."""
_PASSING = (OperationalError, InterfaceError, OSError)
"""What may pass of a storage's server or disk."""
_LONGEST_PAUSE = 5.0
_Answer = TypeVar("_Answer")


def open_storage(url: str | None, run_dir: Path) -> BaseStorage:
    """Returns the storage at `url`: an Optuna URL, a ``.journal`` file (JournalStorage), or None for RUN/study.db.

    Raises:
        RequestError: It cannot be opened.
    """
    url = whole(url, run_dir)
    with readable(url):
        if is_journal(url):
            _require_journal(Path(url))
            _cut_torn_line(Path(url))
            return optuna.storages.JournalStorage(_WholeLines(url))
        return optuna.storages.get_storage(_with_driver(url))


def require_study(url: str | None, run_dir: Path, name: str) -> None:
    """Refuses to go on with a search whose study is not in the storage; a file that is missing is not made.

    Raises:
        RequestError: The storage holds no study `name`, or cannot be opened.
    """
    url = whole(url, run_dir)
    file = path_of(url)
    if file is None or file.exists():
        with readable(url):
            if name in (study.study_name for study in open_storage(url, run_dir).get_all_studies()):
                return
    raise RequestError(
        [
            f"--resume {run_dir}: it holds trials, but the storage {redacted(url)} holds no study {name!r}; give the "
            f"storage that the search began with (--storage, {PASSWORD_VARIABLE}), put back its file, or start a new "
            "--run_dir"
        ]
    )


@contextlib.contextmanager
def readable(url: str | None) -> Iterator[None]:
    """A block in which a storage is read for the first time: one that is broken or away is the request's error."""
    try:
        yield
    except (
        SQLAlchemyError,
        StorageInternalError,
        ImportError,  # the driver that the URL names
        AssertionError,
        ValueError,
        KeyError,
        OSError,
    ) as error:
        if isinstance(error, RequestError):
            raise
        where, cause = redacted(url) if url else STUDY_FILE, error.__cause__ or error
        said = " ".join(str(getattr(cause, "orig", None) or cause).split())
        said = said.replace(url, where) if url else said  # SQLAlchemy repeats what it cannot parse
        raise RequestError([f"--storage {where}: no study can be read there ({said}); {_remedy(where)}"]) from error


class _WholeLines(JournalFileBackend):
    """A journal that stays as it was where a full disk takes a part of a line: the next would be appended to it."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "\n".join(json.dumps(log, separators=(",", ":")) for log in logs)
        journal = Path(self._file_path)
        with _locked(journal):
            size = journal.stat().st_size
            try:
                append_line(journal, lines)
            except OSError:
                os.truncate(journal, size)
                raise


def _require_journal(file: Path) -> None:
    """Refuses a file of something else: what follows its last newline would be cut off."""
    if not file.exists():
        return
    with file.open("rb") as lines:
        first = lines.read(len(_OPENING))
    if first != _OPENING[: len(first)]:
        raise RequestError(
            [f"--storage {file}: is no journal of a study, and was left as it is; name a new file, or the study's own"]
        )


def _cut_torn_line(journal: Path) -> None:
    """Removes what a process that was killed had written of its last line: Optuna would append to it."""
    if not journal.exists():
        return
    with _locked(journal), journal.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


@contextlib.contextmanager
def _locked(journal: Path) -> Iterator[None]:
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remedy(where: str) -> str:
    if "://" in where and not where.startswith("sqlite"):
        return "is the server up, and are user, password and database right?"
    return "put back a copy of the file, or start a new --run_dir: the folders in trials/ keep their scores and weights"


def _with_driver(url: str) -> str:
    """Names the driver that is installed, where the URL names none."""
    scheme, separator, rest = url.partition("://")
    if scheme not in _DRIVERS:
        return url
    for module, driver in _DRIVERS[scheme]:
        if find_spec(module):
            return f"{driver}{separator}{rest}"
    raise RequestError([f"--storage {redacted(url)}: no driver is installed; pip install -e '.[{scheme}]'"])


class RememberedStorage(InMemoryStorage):
    """A storage read from memory and written through, for a process that is its only writer.

    Optuna reads every trial at each ask, report and tell; from a database that costs more with every trial that runs.
    Here nothing is read but at the start, and nothing is remembered that the storage did not take.

    Args:
        kept: What is written to. Studies and trials that it has are remembered; later ones of other writers are not.
        names: The studies to remember; None: all.
    """

    def __init__(self, kept: BaseStorage, names: Sequence[str] | None = None) -> None:
        super().__init__()
        self._kept = kept
        self._kept_studies: dict[int, int] = {}
        self._kept_trials: dict[int, int] = {}
        for study in kept.get_all_studies():
            if names is None or study.study_name in names:
                self._recall(study.study_name, study.directions, study._study_id)

    def _recall(self, name: str, directions: Sequence[StudyDirection], kept_id: int) -> None:
        study = super().create_new_study(directions, name)
        self._kept_studies[study] = kept_id
        for key, value in self._kept.get_study_user_attrs(kept_id).items():
            super().set_study_user_attr(study, key, value)
        for key, value in self._kept.get_study_system_attrs(kept_id).items():
            super().set_study_system_attr(study, key, value)
        for trial in self._kept.get_all_trials(kept_id):
            self._kept_trials[super().create_new_trial(study, trial)] = trial._trial_id

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        kept = self._kept.create_new_study(directions, study_name)
        study = super().create_new_study(directions, study_name)
        self._kept_studies[study] = kept
        return study

    def delete_study(self, study_id: int) -> None:
        self._kept.delete_study(self._kept_studies.pop(study_id))
        super().delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._kept.set_study_user_attr(self._kept_studies[study_id], key, value)
        super().set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._kept.set_study_system_attr(self._kept_studies[study_id], key, value)
        super().set_study_system_attr(study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        kept = self._kept.create_new_trial(self._kept_studies[study_id], template_trial)
        trial = super().create_new_trial(study_id, template_trial)
        self._kept_trials[trial] = kept
        return trial

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._kept.set_trial_param(self._kept_trials[trial_id], param_name, param_value_internal, distribution)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        changed = self._kept.set_trial_state_values(self._kept_trials[trial_id], state, values)
        return changed and super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._kept.set_trial_intermediate_value(self._kept_trials[trial_id], step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._kept.set_trial_user_attr(self._kept_trials[trial_id], key, value)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._kept.set_trial_system_attr(self._kept_trials[trial_id], key, value)
        super().set_trial_system_attr(trial_id, key, value)

    def remove_session(self) -> None:
        self._kept.remove_session()


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
