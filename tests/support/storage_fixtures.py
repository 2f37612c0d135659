"""What tests of run directories in storage write, and what they find there."""

import shutil
from collections.abc import Callable
from pathlib import Path

from tuner.run_dir.object_storage import file_system
from tuner.run_dir.store import MirroredRunStore, RunStore, open_run_dir

NewMachine = Callable[..., MirroredRunStore]
"""Opens the run directory as a machine with an empty disk does; a worker names its driver's lease."""


def write(store: RunStore, **contents: str) -> None:
    """Writes files named with ``__`` for ``/`` and ``_dot_`` for ``.``."""
    for name, content in contents.items():
        path = store.local / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def contents(store: RunStore) -> dict[str, str]:
    """All files of the working directory that are the run's."""
    paths = (path for path in sorted(store.local.rglob("*")) if path.is_file())
    names = {path.relative_to(store.local).as_posix(): path for path in paths}
    return {name: path.read_text() for name, path in names.items() if not name.startswith(".")}


def stored(run_dir: Path, url: str) -> None:
    """Brings a run directory of this machine to storage, as a search with that ``--run_dir`` leaves it there."""
    store = open_run_dir(url)
    shutil.copytree(run_dir, store.local, dirs_exist_ok=True)
    with store.held():
        store.push()


def objects(url: str) -> list[str]:
    """Paths of everything in storage, below the run directory."""
    from pyarrow.fs import FileSelector

    files, root = file_system(url)
    found = files.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
    return sorted(info.path.removeprefix(f"{root}/") for info in found if info.is_file)
