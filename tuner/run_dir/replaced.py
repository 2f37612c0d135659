"""Room for a new search where an old one was: the old one stays until the new one's request is found good."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WRITTEN = ("config.yaml", "data", "study.db", "trials", "best", "report.html", "result.json", "settings", ".ray")
_BEGUN, _FORGOTTEN = ".replaced-begun", ".replaced-forgotten"
ASIDE = ".replaced"
"""Where in a run directory a search lies that is to be replaced."""


def holds_search(run_dir: Path) -> bool:
    """Returns whether a search has begun in the directory."""
    _put_back(run_dir)
    return any((run_dir / name).exists() for name in ("study.db", "result.json")) or holds_trials(run_dir)


def holds_trials(run_dir: Path) -> bool:
    """Returns whether trials have begun in the directory; their study may lie elsewhere."""
    trials = run_dir / "trials"
    return trials.is_dir() and any(trials.iterdir())


@contextmanager
def set_aside(run_dir: Path) -> Iterator[None]:
    """Moves what a search wrote, and nothing else, out of the way for a block.

    It comes back at the block's end, or when a block that was killed is found, unless it was forgotten.
    """
    begun = run_dir / _BEGUN
    begun.mkdir()
    for name in _WRITTEN:
        if (run_dir / name).exists():
            (run_dir / name).rename(begun / name)
    begun.rename(run_dir / ASIDE)
    try:
        yield
    finally:
        _put_back(run_dir)


def forget_replaced(run_dir: Path) -> None:
    """Removes what was set aside, if anything was."""
    if (run_dir / ASIDE).exists():
        (run_dir / ASIDE).rename(run_dir / _FORGOTTEN)  # at once: a half would be put back
    _remove(run_dir / _FORGOTTEN)


def _put_back(run_dir: Path) -> None:
    begun, aside = run_dir / _BEGUN, run_dir / ASIDE
    if aside.is_dir():
        for name in _WRITTEN:
            _remove(run_dir / name)
        aside.rename(begun)  # from here on it is a move that has only begun
    for path in list(begun.iterdir()) if begun.is_dir() else ():
        path.rename(run_dir / path.name)
    _remove(begun)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
