"""Room for a new search where an old one was: the old one stays until the new one's request is found good.

After that it is kept under a dated name, a run directory of its own, or deleted where that was asked for.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainables.files import flush
from tuner.errors import RequestError
from tuner.run_dir.names import RESULT_FILE, STUDY_FILE
from tuner.run_dir.written import holds_trials, move, remove, written

BEGUN, ASIDE, FORGOTTEN = ".replaced-begun", ".replaced", ".replaced-forgotten"
"""Where in a run directory a search lies that is being moved, that is to be replaced, and that is being deleted."""

_KEPT = "replaced"


def holds_search(run_dir: Path) -> bool:
    """Returns whether a search has begun in the directory."""
    return holds_trials(run_dir) or not {STUDY_FILE, RESULT_FILE}.isdisjoint(written(run_dir))


def sweep(run_dir: Path) -> None:
    """Ends what a killed process has begun: a search that it had set aside comes back, a deleted one goes."""
    _put_back(run_dir)
    if (run_dir / FORGOTTEN).is_dir():
        shutil.rmtree(run_dir / FORGOTTEN)


@contextmanager
def set_aside(run_dir: Path) -> Iterator[None]:
    """Moves what a search wrote, and nothing else, out of the way for a block.

    It comes back at the block's end, or when a block that was killed is found, unless it was kept or forgotten.
    """
    begun = run_dir / BEGUN
    begun.mkdir()
    try:
        move(written(run_dir), run_dir, begun)
        begun.rename(run_dir / ASIDE)
        flush(run_dir)
        yield
    finally:
        _put_back(run_dir)


def keep_replaced(run_dir: Path, stamp: str) -> Path | None:
    """Gives what was set aside, if anything was, a name of its own; returns its folder."""
    if not (run_dir / ASIDE).exists():
        return None
    names = [f"{_KEPT}-{stamp}", *(f"{_KEPT}-{stamp}-{number}" for number in range(2, 100))]
    kept = next(run_dir / name for name in names if not os.path.lexists(run_dir / name))
    (run_dir / ASIDE).rename(kept)
    flush(run_dir)
    return kept


def forget_replaced(run_dir: Path) -> None:
    """Deletes what was set aside, if anything was."""
    if (run_dir / ASIDE).exists():
        shutil.rmtree(run_dir / FORGOTTEN, ignore_errors=True)  # of a process that was killed while it deleted
        (run_dir / ASIDE).rename(run_dir / FORGOTTEN)  # at once: a half would be put back
        shutil.rmtree(run_dir / FORGOTTEN)


def _put_back(run_dir: Path) -> None:
    begun, aside = run_dir / BEGUN, run_dir / ASIDE
    if aside.is_dir():
        remove(run_dir, written(run_dir))
        aside.rename(begun)  # from here on it is a move that has only begun
    if begun.is_dir():
        _merge(begun, run_dir)


def _merge(source: Path, target: Path) -> None:
    for entry in list(source.iterdir()):
        place = target / entry.name
        if not os.path.lexists(place):
            entry.rename(place)
        elif entry.is_dir() and place.is_dir() and not place.is_symlink():
            _merge(entry, place)
        else:
            raise RequestError([f"{place} stands where the search that was set aside in {entry} is to be; move it"])
    source.rmdir()
