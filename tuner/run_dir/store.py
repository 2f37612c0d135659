"""Run directories on object storage, worked on through a directory on local disk.

``--run_dir s3://bucket/prefix`` (also gs://, abfss://, and file:// for a disk that several machines mount) is worked on
in a local directory, parts of which are pushed as they change. A part is one entry of the run directory (``study.db``,
``data``, ``best``) or one trial (``trials/0007``), and has one writer at a time. What is kept for it::

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
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainables.files import remove_folder, write_text
from tuner.errors import RequestError
from tuner.run_dir.garbage import Garbage, push_name
from tuner.run_dir.lease import DriversLease, Lease
from tuner.run_dir.names import LIVE_PAGE, RESULT_FILE, STATUS, TRIALS, trial_name
from tuner.run_dir.object_storage import is_url, receive, send, working_directory
from tuner.run_dir.prefix import Listing, Prefix, StoredFile, read_listing, to_json
from tuner.run_dir.safe_names import inside, part_of
from tuner.run_dir.working_files import file_names, opened, parts_of

_LAST_SEEN = ".listings"
"""Folder of the working directory with each part's listing as last pushed or pulled."""
_ATTEMPTS = 3


@dataclass(frozen=True)
class _Seen:
    """A part as this working directory last saw it in storage, and which of its files it took."""

    listing: Listing
    held: set[str]


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
            self._push_part(part)

    def pull(self, paths: Iterable[str] | None = None) -> bool:
        stored = self.stored_parts()
        if paths is None:
            paths = stored
        found = [self._pull_part(part, wanted) for part, wanted in _by_part(paths).items() if part in stored]
        return any(found)

    def remove(self, paths: Iterable[str]) -> None:
        paths = list(paths)
        super().remove(paths)
        stored = self._prefix.parts()
        for part, unwanted in _by_part(paths).items():
            if part in stored:
                held = self._last_seen(part).held
                listing = self._replace(part, partial(_without, folders=unwanted))
                self._remember(part, _Seen(listing, held & listing.keys()))

    def forget(self, parts: Iterable[str]) -> None:
        for part in parts:
            self._record_of(part).unlink(missing_ok=True)  # first: what is not held is not missed by a push
            shutil.rmtree(self._place(part), ignore_errors=True)

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

    def _push_part(self, part: str) -> None:
        self._lease.check()
        seen, pushed = self._last_seen(part), push_name()
        files = self._send(part, file_names(self.local, part), seen.listing, pushed)
        if _rebased(files, seen.listing, seen.held) == seen.listing:
            return

        def change(stored: Listing) -> Listing:
            mine = files if stored == seen.listing else self._mended(part, files, pushed)
            return _rebased(mine, stored, seen.held)

        listing = self._replace(part, change)
        self._remember(part, _Seen(listing, files.keys() & listing.keys()))

    def _mended(self, part: str, files: Listing, pushed: str) -> Listing:
        """`files` after someone else has pushed the part: what they replaced may be gone, and is sent again."""
        there = self._prefix.existing(file.key for file in files.values())
        lost = [path for path, file in files.items() if file.key not in there]
        return {path: file for path, file in files.items() if file.key in there} | self._send(part, lost, {}, pushed)

    def _send(self, part: str, paths: Iterable[str], before: Listing, pushed: str) -> Listing:
        """Brings files to storage, those that are in `before` as they are excepted."""
        files: Listing = {}
        for path in paths:
            key = f"{part}/{pushed}/{path.removeprefix(part).strip('/') or part}"
            with contextlib.suppress(FileNotFoundError):  # the trial replaced or removed it in the meantime
                files[path] = self._send_file(path, key, before.get(path))
        return files

    def _send_file(self, path: str, key: str, before: StoredFile | None) -> StoredFile:
        with opened(self.local / path) as (source, mtime_ns):
            if before and (before.size, before.mtime_ns) == (os.fstat(source.fileno()).st_size, mtime_ns):
                return before
            size, sha256 = send(source, self._prefix.files, self._prefix.path(key))
        return StoredFile(path, key, size, sha256, mtime_ns)

    def _replace(self, part: str, change: Callable[[Listing], Listing]) -> Listing:
        """Puts `change` of a part's listing in its place, where it is still what was read; returns what is there then.

        Storage cannot be asked to replace a listing only if it is as it was. So it is read again just before, nothing
        that it named is removed at once, and a push that finds another's listing brings back what it lacks.
        """
        for _ in range(_ATTEMPTS):
            before = self._prefix.listing(part)
            after = change(before)
            if after == before:
                return after
            self._garbage.replaced(part, _keys(before) - _keys(after))
            self._lease.check()
            if self._prefix.listing(part) == before:
                self._prefix.write_listing(part, after)
                return after
        raise OSError(f"{self.url}: {part} is being written by another process at the same time")

    def _pull_part(self, part: str, paths: Sequence[str]) -> bool:
        seen = self._last_seen(part)
        for attempt in range(1, _ATTEMPTS + 1):
            listing = self._prefix.listing(part)
            wanted = {path for path in listing if _lies_in(path, paths)}
            here = {path for path in seen.held & listing.keys() if self._place(path).exists()}
            try:
                for path in wanted - here if listing == seen.listing else wanted | here:
                    self._pull_file(listing[path])
                break
            except FileNotFoundError:  # its writer pushed the part again and dropped what the old listing named
                if attempt == _ATTEMPTS:
                    raise
        for path in seen.held - listing.keys():
            self._place(path).unlink(missing_ok=True)
        self._remember(part, _Seen(listing, wanted | here))
        return bool(wanted)

    def _pull_file(self, file: StoredFile) -> None:
        target = self._place(file.path)
        if target.exists() and (target.stat().st_size, target.stat().st_mtime_ns) == (file.size, file.mtime_ns):
            return
        arriving = target.with_name(f".{target.name}.arriving")
        got = receive(self._prefix.files, self._prefix.path(file.key), arriving)
        if got != (file.size, file.sha256):
            arriving.unlink()
            raise OSError(
                f"{self.url}: {file.key} must have {file.size} bytes and SHA-256 {file.sha256}, but has {got[0]} and "
                f"{got[1]}; delete listings/{part_of(file.path)}.json there to go on without {part_of(file.path)}"
            )
        os.utime(arriving, ns=(file.mtime_ns, file.mtime_ns))
        arriving.replace(target)

    def _place(self, path: str) -> Path:
        """Where in the working directory a file of storage lies."""
        return inside(self.local, path, self.url)

    def _record_of(self, part: str) -> Path:
        return self._place(f"{_LAST_SEEN}/{part}.json")

    def _last_seen(self, part: str) -> _Seen:
        path = self._record_of(part)
        if not path.exists():
            return _Seen({}, set())
        record = json.loads(path.read_bytes())
        listing = read_listing(json.dumps(record["listing"]).encode(), part, str(path))
        return _Seen(listing, set(record["held"]) & listing.keys())

    def _remember(self, part: str, seen: _Seen) -> None:
        path = self._record_of(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"listing": to_json(seen.listing), "held": sorted(seen.held)}))


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

    Args:
        location: The path or the URL.
        paths: What is needed. None: everything but the trials that neither won nor are recommended.
        trial: Another trial that is needed, too.

    Raises:
        RequestError: Nothing of a run is there, or it may not be read; or what is there would lead out of the folder.
    """
    store = open_run_dir(str(location))
    if isinstance(store, MirroredRunStore) and not store.pull(_finished(store, trial) if paths is None else paths):
        raise RequestError([f"{location} holds no search"])
    return store.local


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


def _lies_in(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _without(listing: Listing, folders: Sequence[str]) -> Listing:
    return {path: file for path, file in listing.items() if not _lies_in(path, folders)}


def _rebased(files: Listing, stored: Listing, held: set[str]) -> Listing:
    """A listing of `files` and of what else is `stored`: nothing that this working directory once had and has not."""
    return files | {path: file for path, file in stored.items() if path not in held | files.keys()}


def _keys(listing: Listing) -> set[str]:
    return {file.key for file in listing.values()}
