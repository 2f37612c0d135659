"""Run directories on object storage, worked on through a directory on local disk.

``--run_dir s3://bucket/prefix`` (also gs://, abfss://, and file:// for a disk that several machines mount) is worked on
in a local directory, parts of which are pushed as they change. A part is one entry of the run directory (``study.db``,
``data``, ``best``) or one trial (``trials/0007``), and has one writer at a time. What is kept for it::

    PREFIX/trials/0007/20261123T195012-3f9c/checkpoint/model.safetensors     a file, under the push that brought it
    PREFIX/listings/trials/0007.json                                         which files make up the part
    PREFIX/leases/head-1-9c41d0aa.json                                       whose search it is (`tuner.run_dir.lease`)

No object is ever overwritten but the listing, which is written last and in one request. So a push that was cut off
leaves the part as the push before it made it, and every file's size and SHA-256 are checked when it is read back.
"""

import contextlib
import json
import os
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from trainables.files import write_text
from tuner.errors import RequestError
from tuner.run_dir.lease import Lease
from tuner.run_dir.object_storage import file_system, is_url, receive, send, working_directory, write_whole

_LAST_SEEN = ".listings"
"""Folder of the working directory with each part's listing as last pushed or pulled."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a part: its path in the run directory, its object, and what its content must be."""

    path: str
    key: str
    size: int
    sha256: str
    mtime_ns: int


Listing = dict[str, StoredFile]


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
            shutil.rmtree(self.local / path, ignore_errors=True)

    def forget(self, parts: Iterable[str]) -> None:
        """Frees this machine's disk of parts that storage holds."""

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


class MirroredRunStore(RunStore):
    """A run directory on object storage, with a working directory on this machine's disk."""

    is_remote = True

    def __init__(self, url: str) -> None:
        super().__init__(url, working_directory("runs", url))
        self._files, self._root = file_system(url)
        self.local.mkdir(parents=True, exist_ok=True)
        self._lease = Lease(url, self._files, self._root, self.local)

    def held(self) -> contextlib.AbstractContextManager[None]:
        return self._lease.held()

    def require_held(self) -> None:
        self._lease.require()

    def push(self, paths: Iterable[str] | None = None) -> None:
        for part in parts_of(self.local) if paths is None else sorted({part_of(path) for path in paths}):
            self._push_part(part)

    def pull(self, paths: Iterable[str] | None = None) -> bool:
        try:
            stored = self._stored_parts()
        except OSError as error:
            raise RequestError([f"{self.url} cannot be read: {error}; check bucket, region and credentials"]) from error
        if paths is None:
            paths = stored
        found = [self._pull_part(part, wanted) for part, wanted in _by_part(paths).items() if part in stored]
        return any(found)

    def remove(self, paths: Iterable[str]) -> None:
        paths = list(paths)
        super().remove(paths)
        stored = self._stored_parts()
        for part, unwanted in _by_part(paths).items():
            if part in stored:
                listing, seen = self._listing(part), self._last_seen(part)
                kept = {path: file for path, file in listing.items() if not _lies_in(path, unwanted)}
                if kept != listing:
                    self._commit(part, kept, before=listing, held=seen.held & kept.keys())

    def forget(self, parts: Iterable[str]) -> None:
        for part in parts:
            self._record_of(part).unlink(missing_ok=True)  # first: what is not held is not missed by a push
            shutil.rmtree(self.local / part, ignore_errors=True)

    def _push_part(self, part: str) -> None:
        seen = self._last_seen(part)
        folder = f"{part}/{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
        listing: Listing = {}
        for path in _file_names(self.local, part):
            key = f"{folder}/{path.removeprefix(part).strip('/') or part}"
            with contextlib.suppress(FileNotFoundError):  # the trial replaced or removed it in the meantime
                listing[path] = self._push_file(path, key, seen.listing.get(path))
        held = set(listing)
        listing |= {path: file for path, file in seen.listing.items() if path not in seen.held | held}
        if listing != seen.listing:
            self._commit(part, listing, before=seen.listing, held=held)

    def _commit(self, part: str, listing: Listing, *, before: Listing, held: set[str]) -> None:
        self._lease.check()
        write_whole(self._files, f"{self._root}/listings/{part}.json", json.dumps(_to_json(listing), indent=1).encode())
        self._remember(part, _Seen(listing, held))
        kept = {
            file.key for file in (*listing.values(), *self._listing(part).values())
        }  # another's, if that came after
        for key in {file.key for file in before.values()} - kept:
            self._files.delete_file(f"{self._root}/{key}")

    def _push_file(self, path: str, key: str, before: StoredFile | None) -> StoredFile:
        with _opened(self.local / path) as (source, mtime_ns):
            if before and (before.size, before.mtime_ns) == (os.fstat(source.fileno()).st_size, mtime_ns):
                return before
            size, sha256 = send(source, self._files, f"{self._root}/{key}")
        return StoredFile(path, key, size, sha256, mtime_ns)

    def _pull_part(self, part: str, paths: Sequence[str]) -> bool:
        seen = self._last_seen(part)
        for attempt in (1, 2, 3):
            listing = self._listing(part)
            wanted = {path for path in listing if _lies_in(path, paths)}
            here = {path for path in seen.held & listing.keys() if (self.local / path).exists()}
            try:
                for path in wanted - here if listing == seen.listing else wanted | here:
                    self._pull_file(listing[path])
                break
            except FileNotFoundError:  # its writer pushed the part again and dropped what the old listing named
                if attempt == 3:
                    raise
        for path in seen.held - listing.keys():
            (self.local / path).unlink(missing_ok=True)
        self._remember(part, _Seen(listing, wanted | here))
        return bool(wanted)

    def _pull_file(self, file: StoredFile) -> None:
        target = self.local / file.path
        if target.exists() and (target.stat().st_size, target.stat().st_mtime_ns) == (file.size, file.mtime_ns):
            return
        arriving = target.with_name(f".{target.name}.arriving")
        got = receive(self._files, f"{self._root}/{file.key}", arriving)
        if got != (file.size, file.sha256):
            arriving.unlink()
            raise OSError(
                f"{self.url}: {file.key} must have {file.size} bytes and SHA-256 {file.sha256}, but has {got[0]} and "
                f"{got[1]}; delete listings/{part_of(file.path)}.json there to go on without {part_of(file.path)}"
            )
        os.utime(arriving, ns=(file.mtime_ns, file.mtime_ns))
        arriving.replace(target)

    def _stored_parts(self) -> set[str]:
        from pyarrow.fs import FileSelector

        folder = f"{self._root}/listings"
        found = self._files.get_file_info(FileSelector(folder, allow_not_found=True, recursive=True))
        if not found and self._files.type_name != "local":
            self._require_bucket()
        names = (info.path.removeprefix(f"{folder}/") for info in found if info.is_file)
        return {name.removesuffix(".json") for name in names if name.endswith(".json")}

    def _require_bucket(self) -> None:
        from pyarrow.fs import FileType

        bucket = self._root.partition("/")[0]
        if self._files.get_file_info(bucket).type == FileType.NotFound:
            raise FileNotFoundError(f"there is no bucket {bucket}")

    def _listing(self, part: str) -> Listing:
        with self._files.open_input_stream(f"{self._root}/listings/{part}.json") as stream:
            return _from_json(json.loads(stream.read()))

    def _record_of(self, part: str) -> Path:
        return self.local / _LAST_SEEN / f"{part}.json"

    def _last_seen(self, part: str) -> _Seen:
        path = self._record_of(part)
        if not path.exists():
            return _Seen({}, set())
        record = json.loads(path.read_bytes())
        return _Seen(_from_json(record["listing"]), set(record["held"]))

    def _remember(self, part: str, seen: _Seen) -> None:
        path = self._record_of(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"listing": _to_json(seen.listing), "held": sorted(seen.held)}))


def open_run_dir(url: str) -> RunStore:
    """Returns the store of a run directory named by a path or by a URL, which is read by `RunStore.pull`.

    Raises:
        RequestError: The URL's scheme is unknown, its bucket cannot be found, or it carries a password.
    """
    return MirroredRunStore(url) if is_url(url) else RunStore(url, Path(url))


def run_folder(location: str | Path) -> Path:
    """Returns the folder of a run directory named by a path or by a URL, whose content is brought here first.

    Raises:
        RequestError: Nothing of a run is there, or it may not be read.
    """
    store = open_run_dir(str(location))
    if store.is_remote and not store.pull():
        raise RequestError([f"{location} holds no search"])
    return store.local


def part_of(path: str) -> str:
    """Returns the part of a run directory that `path` (relative to it) lies in: ``trials/0007`` or the first folder."""
    names = Path(path).parts
    return "/".join(names[:2]) if names[0] == "trials" else names[0]


def parts_of(local: Path) -> list[str]:
    """Returns the parts that a working directory has anything of."""
    trials = local / "trials"
    names = [f"trials/{trial.name}" for trial in trials.iterdir()] if trials.is_dir() else []
    names += [entry.name for entry in local.iterdir() if entry.name != "trials"]
    return sorted(name for name in names if not _passed_over(Path(name).name))


def _file_names(local: Path, part: str) -> Iterator[str]:
    if not (local / part).is_dir():
        yield part
        return
    for folder, folders, files in os.walk(local / part, followlinks=True):
        folders[:] = sorted(name for name in folders if not _passed_over(name))
        for name in sorted(files):
            if not _passed_over(name):
                yield (Path(folder) / name).relative_to(local).as_posix()


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name.endswith((".tmp", ".lock", ".db-journal", ".db-wal", ".db-shm"))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Opens a file to send; of a SQLite database, which may be written to just now, a consistent copy."""
    mtime_ns = path.stat().st_mtime_ns
    if path.suffix != ".db":
        with path.open("rb") as file:
            yield file, mtime_ns
        return
    with tempfile.NamedTemporaryFile(suffix=".db") as copy:
        with (
            contextlib.closing(sqlite3.connect(path)) as database,
            contextlib.closing(sqlite3.connect(copy.name)) as target,
        ):
            database.backup(target)
        yield copy, mtime_ns


def _by_part(paths: Iterable[str]) -> dict[str, list[str]]:
    """Groups paths by the part they lie in."""
    parts: dict[str, list[str]] = {}
    for path in sorted(paths):
        parts.setdefault(part_of(path), []).append(path)
    return parts


def _lies_in(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _to_json(listing: Listing) -> list[dict[str, Any]]:
    return [asdict(file) for file in listing.values()]


def _from_json(entries: Iterable[dict[str, Any]]) -> Listing:
    return {entry["path"]: StoredFile(**entry) for entry in entries}
