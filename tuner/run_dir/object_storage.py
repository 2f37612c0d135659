"""Object storage as this program uses it: addresses, and files that arrive whole or not at all."""

import hashlib
import os
import re
import secrets
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl

from tuner.errors import RequestError

_CHUNK = 8 << 20
_CREDENTIALS = (
    "it would stand in config.yaml and in logs; set it in the environment (AWS_SECRET_ACCESS_KEY, "
    "AZURE_CLIENT_SECRET) or use the machine's role"
)
_OPTIONS = (
    "region",
    "scheme",
    "endpoint_override",
    "force_virtual_addressing",
    "retry_limit_seconds",
    "enable_tls",
    "blob_storage_authority",
    "blob_storage_scheme",
    "dfs_storage_authority",
    "dfs_storage_scheme",
)
"""What may stand behind the ``?`` of a URL: Arrow's options that say where storage is, and none that says who asks."""


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
        RequestError: The scheme is unknown, the bucket cannot be found, or `url` carries a secret.
    """
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    if problem := url_problem(url):
        raise RequestError([problem])
    try:
        files, path = FileSystem.from_uri(url)
    except (ArrowException, OSError, ValueError) as error:
        needed = "it must be s3://, gs:// or abfss:// with a bucket you may read"
        raise RequestError([f"{url} cannot be used as storage: {error}; {needed}"]) from error
    return files, path.rstrip("/")


def url_problem(url: str) -> str | None:
    """Returns what is wrong with a URL of storage that it may not be written down or shown as it is; None for nothing.

    Secrets come from the environment: a URL stands in config.yaml, in logs and on command lines.
    """
    address, _, query = url.partition("?")
    scheme, _, rest = address.partition("://")
    if ":" in rest.partition("/")[0]:  # KEY:SECRET@bucket, where the secret may have a slash in it
        bucket = address[address.rindex("@") :] if "@" in address else ""
        return f"{scheme}://...{bucket} has a secret in it: {_CREDENTIALS}"
    pairs = parse_qsl(query, keep_blank_values=True)
    refused = {key if value else "..." for key, value in pairs if key not in _OPTIONS or "@" in value or "?" in value}
    if refused:
        named = ", ".join(sorted(refused))
        return (
            f"{address}?... may have {', '.join(_OPTIONS[:3])} and the like behind the '?', but not {named}; if that "
            f"is a secret: {_CREDENTIALS}"
        )
    return None


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


def write_whole(files: Any, path: str, content: bytes, content_type: str | None = None) -> None:
    """Replaces `path` by `content` so that a reader sees the old or the new content, never a part.

    Args:
        files: The file system.
        path: On it.
        content: What is written.
        content_type: What a browser takes an object for; None: for something to download.
    """
    make_parent(files, path)
    if files.type_name != "local":  # an object appears when its upload is complete
        metadata = {"Content-Type": content_type} if content_type else None
        with files.open_output_stream(path, metadata=metadata) as sink:
            sink.write(content)
        return
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"  # another machine may be writing it, too
    with files.open_output_stream(temporary) as sink:
        sink.write(content)
    files.move(temporary, path)


def make_parent(files: Any, path: str) -> None:
    """Makes the folder that `path` goes into, where the file system has folders."""
    if files.type_name == "local":
        files.create_dir(path.rpartition("/")[0], recursive=True)
