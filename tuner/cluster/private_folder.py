"""A folder of a search's own for what Ray writes on this machine: nobody else may enter it, and it does not outlive it.

Ray's own is one for all users of a machine: the first owns it, and the second cannot search.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner.errors import RequestError

_PREFIX = "m3-tuner-"
_LOCK = ".search"
_LONGEST = 40
"""Ray puts sockets into its folder: their paths, 60 characters longer, must not be over 107 bytes."""
_REMOVING_SECONDS = 5.0


@contextmanager
def private_folder() -> Iterator[Path]:
    """Makes a folder with a short path and mode 700 for the block, and removes what killed searches have left."""
    parent, folder = _new_folder()
    _sweep(parent)
    try:
        new = folder / f"{_LOCK}.new"
        with new.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # dies with the process
            new.rename(folder / _LOCK)  # a search that begins beside this one finds it locked, or not at all
            yield folder
    finally:
        _remove(folder)


def is_private(folder: Path) -> bool:
    """Whether it is in a folder that `private_folder` made."""
    return any(part.startswith(_PREFIX) for part in folder.parts)


def _new_folder() -> tuple[Path, Path]:
    """Returns a place for temporary files with a path short enough for sockets, and a folder made there.

    Raises:
        RequestError: There is none that can be written.
    """
    causes = []
    for parent in _parents():
        try:
            return parent, Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except OSError as error:
            causes.append(f"{parent}: {error.strerror}")
    raise RequestError(
        [
            f"Ray cannot be started here: no folder for its sockets can be made ({'; '.join(causes)}); set RAY_TMPDIR "
            f"to a folder of yours with a path of at most {_LONGEST - len(_PREFIX) - 9} bytes"
        ]
    )


def _parents() -> Iterator[Path]:
    """Where temporary files go, if that path is not too long for sockets; else short ones that systems have."""
    with contextlib.suppress(OSError):  # none can be written
        named = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).resolve()
        if len(os.fsencode(named / f"{_PREFIX}12345678")) <= _LONGEST:
            yield named
    yield from map(Path, ("/tmp", "/var/tmp", "/dev/shm"))


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}????????"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Ray's processes end a moment after `ray.shutdown`, and may write until then."""
    until = time.monotonic() + _REMOVING_SECONDS
    while folder.exists() and time.monotonic() < until:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05 * folder.exists())
