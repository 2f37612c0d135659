"""Data sets and base models on object storage: brought to this machine once, however many processes ask."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from tuner.errors import RequestError
from tuner.run_dir.object_storage import file_system, is_url, receive, working_directory
from tuner.run_dir.safe_names import inside, safe_name


def local_copy(location: str) -> str:
    """Returns a path on this machine with what `location` holds: a file or a folder, under its own name.

    A path, or the name of a model on the hub, is returned as it is. A URL is downloaded once and taken from disk after
    that, unless what it holds has changed.

    Raises:
        RequestError: The URL cannot be read, nothing is there, or an object's name would lead out of the folder here.
    """
    if not is_url(location):
        return location
    files, root = file_system(location)
    try:
        found = _files_below(files, root)
    except OSError as error:
        raise RequestError([f"{location} cannot be read: {error}; check bucket, region and credentials"]) from error
    if not found:
        raise RequestError([f"{location} must be a file or a folder with files, but nothing is there"])
    state = hashlib.sha256(repr(found).encode()).hexdigest()[:16]
    folder = working_directory("inputs", location) / state
    folder.parent.mkdir(parents=True, exist_ok=True)
    name = safe_name(root.rpartition("/")[2], location)
    try:
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                _download(files, {path: _place(path, root, name, location) for path, _, _ in found}, folder, location)
    except OSError as error:
        raise RequestError([f"{location} could not be brought here: {error}"]) from error
    return str(folder / name)


def _files_below(files: object, root: str) -> list[tuple[str, int, int]]:
    from pyarrow.fs import FileSelector, FileSystem

    assert isinstance(files, FileSystem)
    info = files.get_file_info(root)
    inside = [info] if info.is_file else files.get_file_info(FileSelector(root, allow_not_found=True, recursive=True))
    return sorted((entry.path, entry.size, entry.mtime_ns or 0) for entry in inside if entry.is_file)


def _place(path: str, root: str, name: str, location: str) -> str:
    """Where an object goes that was found below `root`, which is called `name` here."""
    return name if path == root else safe_name(f"{name}/{path.removeprefix(f'{root}/')}", location)


def _download(files: object, places: Mapping[str, str], folder: Path, location: str) -> None:
    arriving = folder.with_suffix(".arriving")
    shutil.rmtree(arriving, ignore_errors=True)
    for path, place in places.items():
        receive(files, path, inside(arriving, place, location))
    arriving.rename(folder)
