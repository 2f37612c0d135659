"""What of a working directory is brought to storage."""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tuner.run_dir.names import LIVE_PAGE, STATUS, TRIALS, part_name
from tuner.run_dir.safe_names import is_passed_over


def parts_of(local: Path) -> list[str]:
    """Returns the parts that a working directory has anything of; what `RunStore.publish` brings is none."""
    trials = local / TRIALS
    names = [part_name(trial.name) for trial in trials.iterdir()] if trials.is_dir() else []
    names += [entry.name for entry in local.iterdir() if entry.name not in (TRIALS, LIVE_PAGE, STATUS)]
    return sorted(name for name in names if not is_passed_over(Path(name).name))


def file_names(local: Path, part: str) -> Iterator[str]:
    if not (local / part).is_dir():
        yield part
        return
    for folder, folders, files in os.walk(local / part, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_passed_over(name))
        for name in sorted(files):
            if not is_passed_over(name):
                yield (Path(folder) / name).relative_to(local).as_posix()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
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
