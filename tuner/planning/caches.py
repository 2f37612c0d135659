"""Cache folders of libraries: where a home cannot be written, they are in the run directory for as long as it takes."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tuner.run_dir.names import RAY

FOLDER = f"{RAY}/cache"
"""Where the program keeps what it needs while it runs."""


@contextmanager
def writable_caches(run_dir: Path) -> Iterator[list[str]]:
    """Sets the environment for the block, also of processes that start in it; yields a line for what was moved."""
    moved = {name: folder for name, folder in _folders().items() if not can_be_written(folder)}
    own = {name: str(run_dir / FOLDER / name.lower()) for name in moved}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield _said(moved, run_dir)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _said(moved: Mapping[str, Path], run_dir: Path) -> list[str]:
    if not moved:
        return []
    places = ", ".join(sorted({str(folder) for folder in moved.values()}))
    return [f"{places}: cannot be written; caches are kept in {run_dir / FOLDER} ({', '.join(moved)} name others)"]


def can_be_written(folder: Path) -> bool:
    """Whether a file can be made in `folder`, or where it would be made."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False


def _folders() -> dict[str, Path]:
    """Variable -> the folder that it names, or that is used where it is not set."""
    home = Path.home()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hugging_face = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    folders = {
        "HF_DATASETS_CACHE": hugging_face / "datasets",
        "HF_MODULES_CACHE": hugging_face / "modules",
        "MTEB_CACHE": home / ".cache" / "mteb",
        "TORCH_EXTENSIONS_DIR": cache / "torch_extensions",
        "TRITON_CACHE_DIR": home / ".triton",
        "MPLCONFIGDIR": Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "matplotlib",
    }
    hub = hugging_face / "hub"
    if not hub.exists():  # models that are there are read, wherever others would be downloaded to
        folders["HF_HUB_CACHE"] = hub
    return {name: Path(os.environ.get(name) or folder) for name, folder in folders.items()}
