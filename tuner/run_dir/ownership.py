"""Whose a run directory is: one that a search made, or an empty one, and held by one search at a time.

The first thing that a search writes is its mark. A directory that is neither empty nor marked is somebody's, and is
refused before anything is written.
"""

import errno
import fcntl
import os
import pwd
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trainables.files import write_text
from trainables.names import DATA
from tuner.errors import RequestError
from tuner.run_dir.names import ENTRIES, EXAMPLE, SETTINGS
from tuner.run_dir.replaced import ASIDE, BEGUN, sweep
from tuner.run_dir.written import (
    holds_trials,
    in_the_way,
    links_out,
    looks_like_search,
    no_search_wrote,
    remove,
    written,
)

MARK = ".m3-tuner"
"""File of a run directory that says whose it is."""

_LOCK, _SCRATCH = ".lock", ".dry-run"
_MARKED = (
    "m3-tuner run directory 1\n"
    "A search of the M3 tuner keeps its files here. Without this file no search writes into this directory.\n"
)
_NOTHING = (_LOCK, "lost+found")
"""What an empty directory may hold: the lock of a refused search; what a new disk holds."""
_SHOWN = 4
_LOCKED = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def mark(run_dir: Path) -> None:
    """Makes a directory the program's."""
    write_text(run_dir / MARK, _MARKED)


def is_ours(run_dir: Path) -> bool:
    """Returns whether a search made the directory, as its mark says, or what a search without marks has left there."""
    with suppress(OSError, UnicodeDecodeError):
        if not (run_dir / MARK).is_symlink() and (run_dir / MARK).read_text("utf-8").startswith("m3-tuner run dir"):
            return True
    return any(looks_like_search(folder) for folder in (run_dir, run_dir / ASIDE, run_dir / BEGUN))


def require_ours(run_dir: Path, flag: str) -> None:
    """Refuses a directory in which a search must not write; nothing is written.

    Args:
        run_dir: The directory, without links; it need not exist.
        flag: How it was named: ``--run_dir``, ``--output_dir`` or ``--resume``.

    Raises:
        RequestError: It is ``/``, a home or above one; it is not a folder, or cannot be looked into; it holds files and
            bears no mark; or something in it that a search writes to is a link to elsewhere.
    """
    named = f"{flag} {run_dir}"
    if any(home == run_dir or home.is_relative_to(run_dir) for home in _homes()):
        raise RequestError([f"{named}: a search needs a directory of its own, and this one is /, a home or above one"])
    try:
        _require_ours(run_dir, named)
    except OSError as error:
        raise RequestError([f"{named}: cannot be read: {error.strerror}"]) from error


def require_apart(run_dir: Path, inputs: Sequence[tuple[str, str]], *, resumed: bool) -> None:
    """Refuses inputs that lie where a search writes.

    Args:
        run_dir: The run directory, without links.
        inputs: Flag and path, as ``("--train_data", "rows.jsonl")``; names that are no paths here do no harm.
        resumed: Whether the search goes on: the example's data and the copies of settings files are its own.

    Raises:
        RequestError: One line for each.
    """
    own = [run_dir / DATA / EXAMPLE, run_dir / SETTINGS] if resumed else []
    places = [run_dir / name for name in ENTRIES]
    problems = []
    for flag, value in inputs:
        path = Path(value).expanduser().resolve()
        inside = any(path.is_relative_to(place) for place in places) or path == run_dir
        if inside and path.exists() and not any(path.is_relative_to(place) for place in own):
            problems.append(
                f"{flag} {value}: an input must not lie where the search writes, but this one is in the run directory "
                f"{run_dir}; name another --run_dir, or copy it out of there"
            )
    if problems:
        raise RequestError(problems)


@contextmanager
def held(run_dir: Path, flag: str, *, is_cache: bool = False, is_dry: bool = False) -> Iterator[None]:
    """Holds a run directory for a search, marked and with what a killed one was moving in its place.

    Where nothing was, nothing is left of a request that is refused before its first trial, or of a dry run.

    Args:
        run_dir: The directory, without links; made if it is not there.
        flag: How it was named, for errors.
        is_cache: It is the program's own copy of object storage, whatever it holds.
        is_dry: Whether only a plan is made.

    Raises:
        RequestError: As `require_ours`; or another search is running there, its file system has no locks, or it cannot
            be written.
    """
    if not is_cache:
        require_ours(run_dir, flag)
    new = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    was_empty = _is_empty(run_dir)
    lock, lock_is_new = _locked(run_dir, flag, is_cache=is_cache)
    leaves = is_dry
    try:
        if not is_cache:
            require_ours(run_dir, flag)  # another search, or its end, may have come first
        with _written_to(run_dir, flag):
            if not (run_dir / MARK).exists():
                mark(run_dir)
            sweep(run_dir)
        if not is_cache and (foreign := in_the_way(run_dir)):
            raise RequestError([f"{flag} {run_dir}: {no_search_wrote(run_dir / name)}" for name in foreign])
        yield
    except RequestError:
        leaves = True
        raise
    finally:
        if leaves and was_empty and not holds_trials(run_dir) and (is_dry or not is_cache):
            _leave_nothing(run_dir, new, whole=is_cache, lock_is_new=lock_is_new)
        os.close(lock)


@contextmanager
def reading(cache: Path) -> Iterator[bool]:
    """Keeps searches out of the program's own copy of object storage for a block, so that files may be brought there.

    Yields:
        Whether it does; False where a search is running there, whose own files are newer than those in storage.
    """
    lock = os.open(cache / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        yield _shared(lock)
    finally:
        os.close(lock)


def _shared(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _LOCKED  # without locks there is no search
    return True


@contextmanager
def scratch(run_dir: Path) -> Iterator[Path]:
    """Yields a folder of a run directory for what only a plan needs; nothing of it is left."""
    folder = run_dir / _SCRATCH
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require_ours(run_dir: Path, named: str) -> None:
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise RequestError([f"{named}: must be a directory, but is a file; name another"])
    if not _is_empty(run_dir) and not is_ours(run_dir):
        found = sorted(entry.name for entry in run_dir.iterdir() if entry.name not in _NOTHING)
        more = ", ..." if len(found) > _SHOWN else ""
        raise RequestError(
            [
                f"{named}: must be new, empty or the run directory of a search, but it holds files that no search "
                f"wrote ({', '.join(found[:_SHOWN])}{more}); name another --run_dir"
            ]
        )
    if links := links_out(run_dir):
        places = ", ".join(f"{name} leads to {(run_dir / name).resolve()}" for name in links[:_SHOWN])
        raise RequestError(
            [
                f"{named}: a search writes only inside of its run directory, but {places}; put a folder in the place "
                "of the link, or name another --run_dir"
            ]
        )


def _homes() -> set[Path]:
    homes = {Path("/"), Path("~").expanduser().resolve()}
    with suppress(KeyError):
        homes.add(Path(pwd.getpwuid(os.getuid()).pw_dir).resolve())
    return homes


def _is_empty(run_dir: Path) -> bool:
    if not run_dir.exists():
        return True
    lock = run_dir / _LOCK
    if lock.exists() and (lock.is_symlink() or lock.stat().st_size):
        return False
    return not run_dir.is_dir() or all(entry.name in _NOTHING for entry in run_dir.iterdir())


@contextmanager
def _written_to(run_dir: Path, flag: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError([f"{flag} {run_dir}: cannot be written: {error.strerror}"]) from error


def _locked(run_dir: Path, flag: str, *, is_cache: bool) -> tuple[int, bool]:
    """Returns the lock that is held, and whether it was made; it dies with its process."""
    while True:
        with _written_to(run_dir, flag):
            run_dir.mkdir(parents=True, exist_ok=True)
            made = not (run_dir / _LOCK).exists()
            lock = os.open(run_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise RequestError([f"{flag} {run_dir}: {_why_not_locked(error, is_cache=is_cache)}"]) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), (run_dir / _LOCK).stat()):
                return lock, made
        os.close(lock)  # a dry run that has just ended took it away


def _why_not_locked(error: OSError, *, is_cache: bool) -> str:
    if error.errno in _LOCKED:
        fetched = ", or its files are just being fetched by another command; wait for that" if is_cache else ""
        return f"another search is running there{fetched}; give another --run_dir"
    return (
        f"its file system cannot lock files ({error.strerror}), and two searches there would spoil each other; mount "
        "it with locks, or name a --run_dir on another disk"
    )


def _leave_nothing(run_dir: Path, new: Sequence[Path], *, whole: bool, lock_is_new: bool) -> None:
    """Removes what a search has written into a directory that was empty, and the directories that it made."""
    if whole:
        shutil.rmtree(run_dir, ignore_errors=True)
        return
    with suppress(OSError):
        remove(run_dir, written(run_dir))
        for name in (MARK, *([_LOCK] if lock_is_new else [])):
            (run_dir / name).unlink(missing_ok=True)
        for folder in new:
            folder.rmdir()
