"""Run directories on object storage, worked on through a directory on local disk.

``--run_dir s3://bucket/prefix`` (also gs://, abfss://, and file:// for a disk that several machines mount) is worked on
in a local directory, parts of which are pushed as they change. A part is one entry of the run directory (``study.db``,
``data``, ``best``), one trial (``trials/0007``) or its curves (``tensorboard/0007``), and has one writer at a time.
What is kept for it::

    PREFIX/trials/0007/20261123T195012-3f9c/checkpoint/model.safetensors     a file, under the push that brought it
    PREFIX/listings/trials/0007.json                                         which files make up the part
    PREFIX/replaced/trials/0007/20261123T201530-a1b2.json                    what is to go (`tuner.run_dir.garbage`)
    PREFIX/leases/000001-head-1-9c41d0aa.json                                whose search it is (`tuner.run_dir.lease`)
    PREFIX/live.html, PREFIX/status.json                                     how the search that runs is doing

No object of a part is ever overwritten but the listing, which is written last and in one request. So a push that was
cut off leaves the part as the push before it made it, and every file's size and SHA-256 are checked when it is read
back. What stands there may have been written by anyone: `tuner.run_dir.safe_names` says which names lead where.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from trainables.files import remove_folder
from tuner.errors import RequestError
from tuner.run_dir.garbage import Garbage
from tuner.run_dir.lease import DriversLease, Lease
from tuner.run_dir.names import LIVE_PAGE, RESULT_FILE, STATUS, TRIALS, trial_name
from tuner.run_dir.object_storage import is_url, working_directory
from tuner.run_dir.ownership import reading
from tuner.run_dir.parts import LAST_SEEN, Parts, parts_of
from tuner.run_dir.prefix import Prefix
from tuner.run_dir.replaced import holds_search
from tuner.run_dir.safe_names import inside, part_of


class RunStore:
    """A run directory on a disk of this machine: the working directory is the storage, and nothing has to be moved.

    Args:
        url: The run directory as the user named it.
        local: The directory to work in.
    """

    is_remote = False
    """Whether what is made here has to be brought somewhere else."""

    def __init__(self, url: str, local: Path) -> None:
        self.url = url
        self.local = local

    def push(self, paths: Iterable[str] | None = None) -> None:
        """Makes storage equal to the working directory, for the parts that `paths` lie in, or for all parts here.

        Files that did not change are not sent again; a SQLite database is sent as a consistent copy; names that start
        with a dot or end in ``.tmp`` are passed over. To be called at each rung and at the end of a trial.

        Raises:
            OSError: Storage cannot be reached. What was pushed before is whole, and the next push catches up.
        """

    def pull(self, paths: Iterable[str] | None = None) -> bool:
        """Makes the working directory equal to storage: the files and folders that `paths` name, or everything.

        A part that storage still holds as this working directory last saw it is left alone: the local files are newer.
        What was not pulled is not missed by `push`.

        Returns:
            Whether storage holds anything of that.

        Raises:
            RequestError: The bucket does not exist or may not be read.
            OSError: A file in storage is not what was pushed.
        """
        if paths is not None:
            return any((self.local / path).exists() for path in paths)
        return self.local.is_dir() and any(self.local.iterdir())

    def remove(self, paths: Iterable[str]) -> None:
        """Removes folders, here and in storage. Only for parts that no other machine writes to any more."""
        for path in paths:
            remove_folder(self.local / path)

    def forget(self, parts: Iterable[str]) -> None:
        """Frees this machine's disk of parts that storage holds."""

    def publish(self) -> None:
        """Brings live.html and status.json to storage, each in one request, under a name that stays.

        They are no parts: whoever pulls the run directory does not get them, and a browser that opened one there finds
        the next one in its place.

        Raises:
            SearchStopped: Another search writes there now.
            OSError: Storage cannot be reached.
        """

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other machines' searches from writing there for a block.

        Raises:
            RequestError: Another search is running there.
        """
        return contextlib.nullcontext()

    def require_held(self) -> None:
        """Says so where another search has taken the place of this one, which `held` it.

        Raises:
            SearchStopped: Another search writes there now.
        """

    @property
    def lease(self) -> str | None:
        """What workers are told, who push only while their driver holds the run directory; None where nobody has to."""
        return None

    def tidy(self) -> None:
        """Removes what was replaced in storage, where nothing else is at work on it any more.

        Raises:
            SearchStopped: Another search writes there now.
            OSError: Storage cannot be reached.
        """


class MirroredRunStore(RunStore):
    """A run directory on object storage, with a working directory on this machine's disk.

    Args:
        url: The run directory as the user named it.
        driver: The lease of the driver that this process works for; nothing is pushed once that is another's. None: a
            driver, or someone who reads.
    """

    is_remote = True

    def __init__(self, url: str, driver: str | None = None) -> None:
        super().__init__(url, working_directory("runs", url))
        self._prefix = Prefix(url)
        self.local.mkdir(parents=True, exist_ok=True)
        self._own = Lease(self._prefix, self.local)
        self._lease = self._own if driver is None else DriversLease(self._prefix, driver)
        self._garbage = Garbage(self._prefix, self._own)
        self._parts = Parts(self.local, self._prefix, lease=self._lease, garbage=self._garbage)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._own.held(), self._garbage.collected():
            yield

    def require_held(self) -> None:
        self._own.require()

    @property
    def lease(self) -> str | None:
        return self._own.name or None

    def push(self, paths: Iterable[str] | None = None) -> None:
        for part in parts_of(self.local) if paths is None else sorted({part_of(path) for path in paths}):
            self._parts.push(part)

    def pull(self, paths: Iterable[str] | None = None) -> bool:
        stored = self.stored_parts()
        if paths is None:
            paths = stored
        found = [self._parts.pull(part, wanted) for part, wanted in _by_part(paths).items() if part in stored]
        return any(found)

    def remove(self, paths: Iterable[str]) -> None:
        paths = list(paths)
        super().remove(paths)
        stored = self._prefix.parts()
        for part, unwanted in _by_part(paths).items():
            if part in stored:
                self._parts.remove(part, unwanted)

    def forget(self, parts: Iterable[str]) -> None:
        for part in parts:
            self._parts.forget(part)

    def publish(self) -> None:
        for name, content_type in ((STATUS, "application/json"), (LIVE_PAGE, "text/html; charset=utf-8")):
            if (self.local / name).is_file():
                self._lease.check()
                self._prefix.write(name, (self.local / name).read_bytes(), content_type)

    def tidy(self) -> None:
        self._garbage.collect(at_once=True)

    def stored_parts(self) -> set[str]:
        """Returns the parts that storage holds.

        Raises:
            RequestError: The bucket does not exist or may not be read.
        """
        try:
            return self._prefix.parts()
        except OSError as error:
            raise RequestError([f"{self.url} cannot be read: {error}; check bucket, region and credentials"]) from error


def open_run_dir(url: str, driver: str | None = None) -> RunStore:
    """Returns the store of a run directory named by a path or by a URL, which is read by `RunStore.pull`.

    Args:
        url: The path or the URL.
        driver: On a worker, `RunStore.lease` of its driver.

    Raises:
        RequestError: The URL's scheme is unknown, its bucket cannot be found, or it carries a secret.
    """
    return MirroredRunStore(url, driver) if is_url(url) else RunStore(url, Path(url))


def run_folder(location: str | Path, paths: Sequence[str] | None = None, *, trial: int | None = None) -> Path:
    """Returns the folder of a run directory named by a path or by a URL, of which what is needed is brought here first.

    Where the search itself is running in that folder, nothing is brought: what is there is newer.

    Args:
        location: The path or the URL.
        paths: What is needed. None: everything but the trials that neither won nor are recommended.
        trial: Another trial that is needed, too.

    Raises:
        RequestError: Nothing of a run is there, or it may not be read; or what is there would lead out of the folder.
    """
    store = open_run_dir(str(location))
    if not isinstance(store, MirroredRunStore):
        return store.local
    with reading(store.local) as may_pull:
        if may_pull and not store.pull(_finished(store, trial) if paths is None else paths):
            raise RequestError([f"{location} holds no search"])
    if not may_pull and not holds_search(store.local):
        raise RequestError([f"{location}: a search is just beginning there, from this machine; try again in a minute"])
    return store.local


def is_mirror(run_dir: Path) -> bool:
    """Returns whether a run directory is the working copy of one on object storage, where files have other names."""
    return (run_dir / LAST_SEEN).is_dir()


def trial_folder(run_dir: Path, name: object) -> Path:
    """Returns the folder of the trial that a result names.

    Raises:
        UnsafeNameError: It would lie elsewhere.
    """
    return inside(run_dir / TRIALS, name, str(run_dir / RESULT_FILE))


def _finished(store: MirroredRunStore, trial: int | None) -> list[str]:
    """The paths of what a search has found, once it has ended, and of `trial`."""
    names = set() if trial is None else {trial_name(trial)}
    if store.pull([RESULT_FILE]):
        names |= _named(store)
    trials = [trial_folder(store.local, name).relative_to(store.local).as_posix() for name in names]
    return [*(part for part in store.stored_parts() if "/" not in part), *trials]


def _named(store: MirroredRunStore) -> set[str]:
    """The folders of the trials that a result hands out, and of their weights."""
    try:
        result = json.loads((store.local / RESULT_FILE).read_bytes())
        models = [model for model in (result.get("best"), result.get("recommended")) if model]
        return {name for model in models for name in (model["folder"], trial_name(model["trial"]))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError([f"{store.url}: its result.json is none of a search; name another run directory"]) from error


def _by_part(paths: Iterable[str]) -> dict[str, list[str]]:
    """Groups paths by the part they lie in."""
    parts: dict[str, list[str]] = {}
    for path in sorted(paths):
        parts.setdefault(part_of(path), []).append(path)
    return parts
