"""Object storage as this program uses it: addresses, and files that arrive whole or not at all."""

import hashlib
import os
import re
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from tuner.errors import RequestError

_CHUNK = 8 << 20
_CREDENTIALS = "set it in the environment (AWS_SECRET_ACCESS_KEY) or use the machine's role"


def is_url(location: str) -> bool:
    """Whether `location` names object storage (``s3://...``) and not a path."""
    return "://" in location


def file_system(url: str) -> tuple[Any, str]:
    """Opens the file system of `url`.

    Credentials come from where the vendor's tools take them: the environment, a profile, the machine's role. A server
    of one's own is named as Arrow names it: ``s3://bucket/prefix?endpoint_override=http://host:9000``.

    Returns:
        A ``pyarrow.fs.FileSystem``, and the path of `url` on it.

    Raises:
        RequestError: The scheme is unknown, the bucket cannot be found, or `url` carries a password.
    """
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    if urlsplit(url).password is not None:
        shown = re.sub("//.*@", "//...@", url)
        raise RequestError(
            [f"{shown} has a secret in it, which would stand in config.yaml and in logs; {_CREDENTIALS}"]
        )
    try:
        files, path = FileSystem.from_uri(url)
    except (ArrowException, OSError, ValueError) as error:
        needed = "it must be s3://, gs:// or abfss:// with a bucket you may read"
        raise RequestError([f"{url} cannot be used as storage: {error}; {needed}"]) from error
    return files, path.rstrip("/")


def working_directory(kind: str, url: str) -> Path:
    """Returns the place on this machine's disk for what `url` holds: the same on every machine with the same user."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    readable = re.sub(r"[^\w.-]+", "-", url.split("://", 1)[1].split("?")[0]).strip("-")
    return cache / "m3-tuner" / kind / f"{readable[-60:]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def send(source: IO[bytes], files: Any, path: str) -> tuple[int, str]:
    """Writes `source` to `path`; returns its size in bytes and its SHA-256, of the bytes that were sent."""
    make_parent(files, path)
    size, digest = 0, hashlib.sha256()
    with files.open_output_stream(path) as sink:
        while block := source.read(_CHUNK):
            digest.update(block)
            size += sink.write(block)
    return size, digest.hexdigest()


def receive(files: Any, path: str, target: Path) -> tuple[int, str]:
    """Reads `path` into the new file `target`; returns its size in bytes and its SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    size, digest = 0, hashlib.sha256()
    with files.open_input_stream(path) as source, target.open("wb") as sink:
        while block := source.read(_CHUNK):
            digest.update(block)
            size += sink.write(block)
    return size, digest.hexdigest()


def write_whole(files: Any, path: str, content: bytes) -> None:
    """Replaces `path` by `content` so that a reader sees the old or the new content, never a part."""
    make_parent(files, path)
    if files.type_name != "local":  # an object appears when its upload is complete
        with files.open_output_stream(path) as sink:
            sink.write(content)
        return
    with files.open_output_stream(f"{path}.tmp") as sink:
        sink.write(content)
    files.move(f"{path}.tmp", path)


def make_parent(files: Any, path: str) -> None:
    """Makes the folder that `path` goes into, where the file system has folders."""
    if files.type_name == "local":
        files.create_dir(path.rpartition("/")[0], recursive=True)
