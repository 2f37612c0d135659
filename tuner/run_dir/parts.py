"""The parts of a run directory: which files of a working directory they are, and their way to storage and back.

No object of a part is ever overwritten but its listing, which is written last: see `tuner.run_dir.store`.
"""

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from trainables.files import write_text
from trainables.names import CURVES
from tuner.run_dir.garbage import Garbage, push_name
from tuner.run_dir.lease import DriversLease, Lease
from tuner.run_dir.names import LIVE_PAGE, STATUS, TRIALS
from tuner.run_dir.object_storage import receive, send
from tuner.run_dir.prefix import Listing, Prefix, StoredFile, read_listing, to_json
from tuner.run_dir.safe_names import inside, is_passed_over, part_of

LAST_SEEN = ".listings"
"""Folder of the working directory with each part's listing as last pushed or pulled."""
_ATTEMPTS = 3


def parts_of(local: Path) -> list[str]:
    """Returns the parts that a working directory has anything of; what `RunStore.publish` brings is none."""
    folders = [local / name for name in (TRIALS, CURVES) if (local / name).is_dir()]
    names = [f"{folder.name}/{trial.name}" for folder in folders for trial in folder.iterdir()]
    names += [entry.name for entry in local.iterdir() if entry.name not in (TRIALS, CURVES, LIVE_PAGE, STATUS)]
    return sorted(name for name in names if not is_passed_over(Path(name).name))


@dataclass(frozen=True)
class _Seen:
    """A part as a working directory last saw it in storage, and which of its files it took."""

    listing: Listing
    held: set[str]


class _WorkingDirectory:
    """Where files of storage lie on this machine, and what was last seen of the parts that they are of.

    Args:
        local: The folder.
        url: The run directory in storage, for errors.
    """

    def __init__(self, local: Path, url: str) -> None:
        self.local, self._url = local, url

    def place(self, path: str) -> Path:
        """Returns where a file of storage lies.

        Raises:
            UnsafeNameError: It would lie elsewhere.
        """
        return inside(self.local, path, self._url)

    def last_seen(self, part: str) -> _Seen:
        """Returns what was remembered of a part; nothing of one that was neither pushed nor pulled."""
        path = self._record_of(part)
        if not path.exists():
            return _Seen({}, set())
        record = json.loads(path.read_bytes())
        listing = read_listing(json.dumps(record["listing"]).encode(), part, str(path))
        return _Seen(listing, set(record["held"]) & listing.keys())

    def remember(self, part: str, seen: _Seen) -> None:
        """Writes down what a part is in storage, and what of it is here."""
        path = self._record_of(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"listing": to_json(seen.listing), "held": sorted(seen.held)}))

    def forget(self, part: str) -> None:
        """Removes a part from this machine."""
        self._record_of(part).unlink(missing_ok=True)  # first: what is not held is not missed by a push
        shutil.rmtree(self.place(part), ignore_errors=True)

    def _record_of(self, part: str) -> Path:
        return self.place(f"{LAST_SEEN}/{part}.json")


class Parts:
    """Brings single parts from a working directory to storage, and back.

    Args:
        local: The working directory.
        prefix: The run directory in storage.
        lease: Nothing is written once it is another's.
        garbage: Told of what was replaced.
    """

    def __init__(self, local: Path, prefix: Prefix, *, lease: Lease | DriversLease, garbage: Garbage) -> None:
        self._here, self._prefix = _WorkingDirectory(local, prefix.url), prefix
        self._lease, self._garbage = lease, garbage

    def push(self, part: str) -> None:
        """Makes a part of storage equal to what is here of it.

        Raises:
            SearchStopped, LeaseLostError: Another search writes there now.
            OSError: Storage cannot be reached.
        """
        self._lease.check()
        seen, pushed = self._here.last_seen(part), push_name()
        files = self._send(part, _file_names(self._here.local, part), seen.listing, pushed)
        if _rebased(files, seen.listing, seen.held) == seen.listing:
            return

        def change(stored: Listing) -> Listing:
            mine = files if stored == seen.listing else self._mended(part, files, pushed)
            return _rebased(mine, stored, seen.held)

        listing = self._replace(part, change)
        self._here.remember(part, _Seen(listing, files.keys() & listing.keys()))

    def pull(self, part: str, paths: Sequence[str]) -> bool:
        """Makes what `paths` name of a part equal to storage; returns whether storage holds any of it.

        Raises:
            OSError: A file in storage is not what was pushed, or storage cannot be reached.
        """
        seen = self._here.last_seen(part)
        for attempt in range(1, _ATTEMPTS + 1):
            listing = self._prefix.listing(part)
            wanted = {path for path in listing if _lies_in(path, paths)}
            here = {path for path in seen.held & listing.keys() if self._here.place(path).exists()}
            try:
                for path in wanted - here if listing == seen.listing else wanted | here:
                    self._pull_file(listing[path])
                break
            except FileNotFoundError:  # its writer pushed the part again and dropped what the old listing named
                if attempt == _ATTEMPTS:
                    raise
        for path in seen.held - listing.keys():
            self._here.place(path).unlink(missing_ok=True)
        self._here.remember(part, _Seen(listing, wanted | here))
        return bool(wanted)

    def remove(self, part: str, folders: Sequence[str]) -> None:
        """Removes folders of a part from storage."""
        held = self._here.last_seen(part).held
        listing = self._replace(part, partial(_without, folders=folders))
        self._here.remember(part, _Seen(listing, held & listing.keys()))

    def forget(self, part: str) -> None:
        """Frees this machine's disk of a part that storage holds."""
        self._here.forget(part)

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
        with _opened(self._here.local / path) as (source, mtime_ns):
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
        raise OSError(f"{self._prefix.url}: {part} is being written by another process at the same time")

    def _pull_file(self, file: StoredFile) -> None:
        target = self._here.place(file.path)
        if target.exists() and (target.stat().st_size, target.stat().st_mtime_ns) == (file.size, file.mtime_ns):
            return
        arriving = target.with_name(f".{target.name}.arriving")
        got = receive(self._prefix.files, self._prefix.path(file.key), arriving)
        if got != (file.size, file.sha256):
            arriving.unlink()
            raise OSError(
                f"{self._prefix.url}: {file.key} must have {file.size} bytes and SHA-256 {file.sha256}, but has "
                f"{got[0]} and {got[1]}; delete "
                f"listings/{part_of(file.path)}.json there to go on without {part_of(file.path)}"
            )
        os.utime(arriving, ns=(file.mtime_ns, file.mtime_ns))
        arriving.replace(target)


def _file_names(local: Path, part: str) -> Iterator[str]:
    if not (local / part).is_dir():
        yield part
        return
    for folder, folders, files in os.walk(local / part, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_passed_over(name))
        for name in sorted(files):
            if not is_passed_over(name):
                yield (Path(folder) / name).relative_to(local).as_posix()


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


def _lies_in(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _without(listing: Listing, folders: Sequence[str]) -> Listing:
    return {path: file for path, file in listing.items() if not _lies_in(path, folders)}


def _rebased(files: Listing, stored: Listing, held: set[str]) -> Listing:
    """A listing of `files` and of what else is `stored`: nothing that this working directory once had and has not."""
    return files | {path: file for path, file in stored.items() if path not in held | files.keys()}


def _keys(listing: Listing) -> set[str]:
    return {file.key for file in listing.values()}
