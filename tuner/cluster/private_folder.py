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

_PREFIX = "m3-tuner-"
_LOCK = ".search"
_LONGEST = 40
"""Ray puts sockets into its folder: their paths, 60 characters longer, must not be over 107 bytes."""
_REMOVING_SECONDS = 5.0


@contextmanager
def private_folder() -> Iterator[Path]:
    """Makes a folder with a short path and mode 700 for the block, and removes what killed searches have left."""
    parent = _parent()
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # dies with the process
            yield folder
    finally:
        _remove(folder)


def _parent() -> Path:
    """Where temporary files go; /tmp where that path is too long for sockets."""
    named = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).resolve()
    return named if len(os.fsencode(named / f"{_PREFIX}12345678")) <= _LONGEST else Path("/tmp")


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
