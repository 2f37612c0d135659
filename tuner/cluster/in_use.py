"""Parts of a working directory that several processes of a machine use: the last of them frees the disk.

The workers of a group and the slots of a machine share its working directory, and jobs read each other's parts.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner.run_dir.mirror import alone_on_this_machine
from tuner.run_dir.safe_names import inside
from tuner.run_dir.store import RunStore

_USES = ".uses"
"""Folder of the working directory with a file for each part: users hold a shared lock on it, which dies with them, and
something stands in it while storage may lack what is here."""


@contextmanager
def in_use(store: RunStore, parts: Iterable[str], *, stays: bool) -> Iterator[None]:
    """Uses parts for a block; then forgets those that no other process of this machine uses, or `keep` is to keep.

    Args:
        store: The working directory.
        parts: Parts of it.
        stays: Whether nothing is forgotten.
    """
    files = {part: _file(store, part) for part in parts}
    with alone_on_this_machine(store.local, "uses"):
        locks = {part: _shared(file) for part, file in files.items()}
    try:
        yield
    finally:
        with alone_on_this_machine(store.local, "uses"):
            for part, lock in locks.items():
                if _is_last(lock) and (stays or not os.fstat(lock).st_size):
                    if not stays:
                        store.forget([part])
                    files[part].unlink()
                fcntl.flock(lock, fcntl.LOCK_UN)  # a process that was forked off may have it open still
                os.close(lock)


def keep(store: RunStore, parts: Iterable[str]) -> None:
    """Keeps parts that are in use on this disk from now on: storage may lack some of them."""
    for part in parts:
        _file(store, part).write_text("not in storage yet")


def let_go(store: RunStore, parts: Iterable[str]) -> None:
    """Ends what `keep` has begun: storage has all of the parts."""
    for part in parts:
        _file(store, part).write_text("")


def _file(store: RunStore, part: str) -> Path:
    return inside(store.local, f"{_USES}/{part}", store.url)


def _shared(file: Path) -> int:
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def _is_last(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
