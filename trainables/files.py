"""Files that are whole or not there: written under another name, flushed to the disk, then renamed.

A folder that is replaced or removed here lists its files, so that what somebody else has put into it stays.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LISTING = ".m3-tuner-files"
"""In a folder that `new_folder` made: the names of its files, one a line."""
CHECKSUMS = "sha256sums.txt"
"""In a bundle: the same, as ``sha256sum -c`` reads it."""


def write_text(path: Path, text: str) -> None:
    """Writes a file at once."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file at once."""
    with new_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields where to write a file that takes the place of `path` when the block ends without an exception."""
    temporary = path.with_name(f".{path.name}.tmp")
    yield temporary
    flush(temporary)
    temporary.replace(path)
    flush(path.parent)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_line(path: Path, line: str) -> None:
    """Appends a line and flushes it to the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `path` when the block ends without an exception.

    Files that somebody else has put into the folder which it replaces are kept. A mount point is filled, not replaced.
    """
    settle_folder(path)
    is_mount = path.is_mount()
    temporary = path / ".new.tmp" if is_mount else path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    names = files_in(temporary)
    if CHECKSUMS not in names:
        (temporary / LISTING).write_text("".join(f"{name}\n" for name in sorted(names)), encoding="utf-8")
    for entry in [*temporary.rglob("*"), temporary]:
        flush(entry)
    if is_mount:
        _move_up(temporary)
    else:
        _take_place(temporary, path)
    flush(path.parent)


def settle_folder(path: Path) -> None:
    """Ends what a `new_folder` that was killed had begun: what `path` was before comes back where the new one is not.

    Of both, only files that somebody else had put there stay.
    """
    temporary, old = (path.with_name(f".{path.name}.{ending}") for ending in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    if old.exists() and not path.exists():
        old.rename(path)
        flush(path.parent)
    elif old.exists():
        _clear(old, path)


def remove_folder(path: Path) -> None:
    """Removes a folder that `new_folder` made, what is left of broken replacements, and nothing that others put there.

    A folder without a list of its files is removed as a whole. What cannot be removed stays, without an error.
    """
    with suppress(OSError):
        settle_folder(path)
    names = listed(path)
    if names is None:
        shutil.rmtree(path, ignore_errors=True)
    elif not path.is_symlink():
        remove_files(path, names)


def listed(folder: Path) -> set[str] | None:
    """Returns the files in `folder` that its own list names, the list among them; None where it has none."""
    for name, width in ((LISTING, 0), (CHECKSUMS, 66)):  # 64 digits and 2 spaces
        with suppress(OSError, UnicodeDecodeError):
            lines = (folder / name).read_text("utf-8").splitlines()
            return {line[width:] for line in lines} & files_in(folder) | {name}
    return None


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Removes the files `names` of `folder`, and the folders that are empty then; lists of files go last."""
    ordered = sorted(names, key=lambda name: (name in (LISTING, CHECKSUMS), name))
    for name in ordered:
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    prune(folder, ordered)
    with suppress(OSError):
        folder.rmdir()


def prune(folder: Path, names: Iterable[str]) -> None:
    """Removes the folders of the files `names` inside of `folder` that hold nothing."""
    parents = {parent for name in names for parent in Path(name).parents if parent.parts}
    for parent in sorted(parents, key=lambda parent: len(parent.parts), reverse=True):
        with suppress(OSError):
            (folder / parent).rmdir()


def files_in(folder: Path) -> set[str]:
    """Returns the names of all files below `folder`, relative to it; links are files, and are not followed."""
    found = set()
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        found |= {Path(place, name).relative_to(folder).as_posix() for name in [*files, *links]}
    return found


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk; some file systems cannot say that of folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def whole_records(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yields what stands whole in a metrics.jsonl: a kill or a full disk may have cut a line short."""
    for line in path.read_text("utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def _take_place(temporary: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    flush(path.parent)
    if old.exists():
        _clear(old, path)


def _clear(old: Path, new: Path) -> None:
    """Removes a folder that was replaced; what others had put there goes on in its successor, under its name."""
    if old.is_symlink():
        old.unlink()
        return
    names = listed(old)
    if names is None:
        shutil.rmtree(old, ignore_errors=True)
        return
    for name in files_in(old) - names:
        target = new / name
        if not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            (old / name).rename(target)
            prune(old, [name])
    remove_files(old, names)


def _move_up(folder: Path) -> None:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name in (LISTING, CHECKSUMS)):
        entry.rename(folder.parent / entry.name)
    folder.rmdir()
