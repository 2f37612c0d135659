"""Data sets and base models on object storage: brought to this machine once, however many processes ask."""

import fcntl
import hashlib
import shutil
from pathlib import Path

from tuner.errors import RequestError
from tuner.run_dir.object_storage import file_system, is_url, receive, working_directory


def local_copy(location: str) -> str:
    """Returns a path on this machine with what `location` holds: a file or a folder, under its own name.

    A path, or the name of a model on the hub, is returned as it is. A URL is downloaded once and taken from disk after
    that, unless what it holds has changed.

    Raises:
        RequestError: The URL cannot be read, or nothing is there.
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
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _download(files, root, [path for path, _, _ in found], folder)
    return str(folder / root.rpartition("/")[2])


def _files_below(files: object, root: str) -> list[tuple[str, int, int]]:
    from pyarrow.fs import FileSelector, FileSystem

    assert isinstance(files, FileSystem)
    info = files.get_file_info(root)
    inside = [info] if info.is_file else files.get_file_info(FileSelector(root, allow_not_found=True, recursive=True))
    return sorted((entry.path, entry.size, entry.mtime_ns or 0) for entry in inside if entry.is_file)


def _download(files: object, root: str, paths: list[str], folder: Path) -> None:
    arriving = folder.with_suffix(".arriving")
    shutil.rmtree(arriving, ignore_errors=True)
    name = root.rpartition("/")[2]
    for path in paths:
        receive(files, path, arriving / (name + path.removeprefix(root)))
    arriving.rename(folder)
