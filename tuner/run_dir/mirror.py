"""The driver's and the workers' sides of a run directory on object storage.

The driver's working directory holds everything that storage holds; a worker's holds the data and its own trial. A
trial's part of storage is written by the first worker of its group while it runs, and by the driver after that.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from trainables.files import remove_folder
from tuner.errors import RequestError
from tuner.interrupts import SearchStopped
from tuner.run_dir.lease import LeaseLostError
from tuner.run_dir.names import STUDY_FILE, curves_part, part_name
from tuner.run_dir.parts import parts_of
from tuner.run_dir.safe_names import UnsafeNameError, part_of
from tuner.run_dir.store import RunStore

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_PAUSE_SECONDS = 10.0
_AWAY = (OSError, RequestError)
"""What `RunStore` raises where storage does not answer; a search that runs has been answered before."""
_FOR_GOOD = (LeaseLostError, UnsafeNameError)
"""Of these, what another try does not mend."""


class Mirror:
    """Keeps storage and the driver's working directory equal while a search runs, from a thread of its own.

    Args:
        store: The run directory.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mirror")
        self._asked: list[Future[None]] = []
        self._study_waits = self._pages_wait = False
        self._stopped: set[str] = set()
        self._dropped: set[str] = set()

    def begin(self) -> None:
        """Brings to storage what workers need: the data, and what was asked.

        Raises:
            SearchStopped: Storage cannot be reached.
        """
        self._ask(self._push_own)
        self.settle()

    def study_changed(self) -> None:
        """Brings a consistent copy of the study to storage; while one waits to be sent, no other is needed."""
        if not self._study_waits:
            self._study_waits = True
            self._ask(self._push_study)

    def pages_changed(self) -> None:
        """Brings live.html and status.json to storage; while they wait to be sent, no others are needed."""
        if not self._pages_wait:
            self._pages_wait = True
            self._ask(self._publish)

    def begun(self, trial: str) -> None:
        """Knows that `trial` is handed out, perhaps once more: what was stopped or dropped may come anew."""
        self._stopped.discard(part_name(trial))
        self._dropped = {folder for folder in self._dropped if part_of(folder) != part_name(trial)}

    def ended(self, trial: str, *, stopped: bool = False) -> None:
        """Brings here what a worker has made of `trial`; later, where it was `stopped` and is only now finding out."""
        if stopped:
            self._stopped.add(part_name(trial))
        else:
            self._ask(lambda: self._pull([part_name(trial), curves_part(trial)]))

    def drop(self, folders: Sequence[str]) -> None:
        """Removes folders of trials, here at once and in storage soon; a stopped trial's worker does that itself."""
        for folder in folders:
            remove_folder(self._store.local / folder)
        kept = [folder for folder in folders if folder not in self._dropped and part_of(folder) not in self._stopped]
        self._dropped.update(kept)
        if kept:
            self._ask(lambda: self._store.remove(kept))

    def settle(self) -> None:
        """Waits until everything that was asked for is done.

        Raises:
            SearchStopped: Storage cannot be reached.
        """
        asked, self._asked = self._asked, []
        try:
            for future in asked:
                future.result()
        except UnsafeNameError as error:
            raise SearchStopped(str(error)) from error
        except _AWAY as error:
            raise SearchStopped(f"{self._store.url} cannot be reached: {error}") from error

    def finish(self) -> None:
        """Brings everything here that workers wrote, and to storage what the driver did; no job may be running.

        Raises:
            SearchStopped: Storage cannot be reached.
        """
        self._ask(lambda: self._pull(None))
        self._ask(self._push_own)
        self._ask(self._store.tidy)
        self.settle()

    def leave(self) -> None:
        """Brings to storage what the driver wrote, when the search ends before its time; says so where that fails.

        What else was asked for is left: a resume does it.
        """
        self._asked = [future for future in self._asked if not future.cancel()]
        try:
            self._ask(self._push_own)
            self.settle()
        except SearchStopped as error:
            logger.warning("%s; storage lacks what came last", error)

    def _push_own(self) -> None:
        self._store.push(part for part in parts_of(self._store.local) if "/" not in part)
        self._store.publish()

    def _push_study(self) -> None:
        self._study_waits = False
        self._store.push([STUDY_FILE] if (self._store.local / STUDY_FILE).exists() else [])

    def _publish(self) -> None:
        self._pages_wait = False
        with suppress(OSError):  # the next ones come in seconds
            self._store.publish()

    def _pull(self, paths: Sequence[str] | None) -> None:
        self._store.pull(paths)

    def _ask(self, what: Callable[[], None]) -> None:
        if not self._store.is_remote:
            return
        self._store.require_held()
        self._asked = [future for future in self._asked if not future.done() or future.exception()]
        self._asked.append(self._thread.submit(_patiently, what))


class Pusher:
    """Pushes a trial's parts while it trains, from a thread of its own: training does not wait for storage.

    Args:
        store: The worker's working directory.
        parts: ``trials/NAME``, and what else the trial writes.
    """

    def __init__(self, store: RunStore, *parts: str) -> None:
        self._store, self._parts = store, parts
        self._wanted, self._over = threading.Event(), False
        self._lost: LeaseLostError | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Pushes soon."""
        self._wanted.set()

    def require_place(self) -> None:
        """Says so where a push has found that another search has the run directory.

        Raises:
            LeaseLostError: It has.
        """
        if self._lost:
            raise self._lost

    def close(self) -> None:
        """Pushes what is there now, and waits for it.

        Raises:
            LeaseLostError: Another search has the run directory.
            OSError: Storage cannot be reached.
        """
        self._over = True
        self._wanted.set()
        self._thread.join()
        _patiently(lambda: self._store.push(self._parts))

    def _work(self) -> None:
        while self._wanted.wait() and not self._over:
            self._wanted.clear()
            try:
                self._store.push(self._parts)
            except LeaseLostError as error:
                self._lost = error
                return
            except Exception as error:  # whatever it is: training goes on, and `close` tells what stays wrong
                logger.warning(
                    "%s was not brought to %s: %s; the next time catches up", self._parts[0], self._store.url, error
                )


@contextmanager
def alone_on_this_machine(folder: Path, name: str) -> Iterator[None]:
    """Lets one process of this machine into the block at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{name}.lock"):
        yield


def _patiently(what: Callable[[], Any]) -> None:
    """Tries again when storage cannot be reached."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            what()
        except _FOR_GOOD:
            raise
        except _AWAY as error:
            if attempt == _ATTEMPTS:
                raise
            logger.warning("object storage: %s; trying again in %.0f s", error, _PAUSE_SECONDS)
            threading.Event().wait(_PAUSE_SECONDS)
        else:
            return
