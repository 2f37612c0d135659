"""A run directory's prefix of object storage: its objects by their keys, and the listings that say which of them count.

Nothing that stands there is trusted: every key and path is checked by `tuner.run_dir.safe_names` before it is used.
"""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuner.errors import RequestError
from tuner.run_dir.names import TRIALS
from tuner.run_dir.object_storage import file_system, write_whole
from tuner.run_dir.safe_names import UnsafeNameError, inside, is_passed_over, part_of, safe_name

LISTINGS, LEASES, REPLACED = "listings", "leases", "replaced"
_OWN = (LISTINGS, LEASES, REPLACED)
"""Folders of a prefix that are no parts of the run directory."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a part: its path in the run directory, its object, and what its content must be."""

    path: str
    key: str
    size: int
    sha256: str
    mtime_ns: int


Listing = dict[str, StoredFile]


@dataclass(frozen=True)
class StoredObject:
    """An object that was found: its key, and the storage's own time of it."""

    key: str
    mtime_ns: int


class Prefix:
    """The objects of one run directory.

    Args:
        url: The run directory as the user named it.

    Raises:
        RequestError: The URL's scheme is unknown, its bucket cannot be found, or it carries a secret.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files, self._root = file_system(url)

    def path(self, key: str) -> str:
        """Returns the path of an object on the file system.

        Raises:
            UnsafeNameError: It would lie elsewhere.
        """
        if self.files.type_name == "local":
            return str(inside(Path(self._root), key, self.url))
        return f"{self._root}/{safe_name(key, self.url)}"

    def objects(self, folder: str = "") -> list[StoredObject]:
        """Returns the objects whose keys begin with `folder`/, or all of them."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.path(folder) if folder else self._root, allow_not_found=True, recursive=True)
        found = [info for info in self.files.get_file_info(selector) if info.is_file]
        return [StoredObject(info.path.removeprefix(f"{self._root}/"), info.mtime_ns or 0) for info in found]

    def existing(self, keys: Iterable[str]) -> set[str]:
        """Returns those of `keys` that there are objects of."""
        wanted = list(keys)
        found = self.files.get_file_info([self.path(key) for key in wanted]) if wanted else []
        return {key for key, info in zip(wanted, found, strict=True) if info.is_file}

    def read(self, key: str) -> bytes:
        """Returns the content of a small object."""
        with self.files.open_input_stream(self.path(key)) as stream:
            return bytes(stream.read())

    def write(self, key: str, content: bytes, content_type: str | None = None) -> None:
        """Writes or replaces a small object, at once; a browser shows one whose `content_type` it knows."""
        write_whole(self.files, self.path(key), content, content_type)

    def remove(self, key: str) -> None:
        """Removes an object, where it is there."""
        with contextlib.suppress(FileNotFoundError):
            if self.existing([key]):
                self.files.delete_file(self.path(key))

    def parts(self) -> set[str]:
        """Returns the parts that have a listing.

        Raises:
            OSError: There is no such bucket, or it may not be read.
            UnsafeNameError: A listing's name is none that a push makes.
        """
        found = self.objects(LISTINGS)
        if not found and self.files.type_name != "local":
            self._require_bucket()
        names = (found.key.removeprefix(f"{LISTINGS}/") for found in found)
        return {_checked_part(name.removesuffix(".json"), self.url) for name in names if name.endswith(".json")}

    def listing(self, part: str) -> Listing:
        """Returns which files make up a part; none where it has no listing.

        Raises:
            UnsafeNameError: A file or its object would lie outside of the part.
            RequestError: It is no listing.
        """
        key = f"{LISTINGS}/{part}.json"
        try:
            content = self.read(key)
        except FileNotFoundError:
            return {}
        return read_listing(content, part, f"{self.url}: {key}")

    def write_listing(self, part: str, listing: Listing) -> None:
        """Says which files make up a part from now on."""
        self.write(f"{LISTINGS}/{part}.json", json.dumps(to_json(listing), indent=1).encode())

    def _require_bucket(self) -> None:
        from pyarrow.fs import FileType

        bucket = self._root.partition("/")[0]
        if self.files.get_file_info(bucket).type == FileType.NotFound:
            raise FileNotFoundError(f"there is no bucket {bucket}")


def to_json(listing: Listing) -> list[dict[str, Any]]:
    """Returns a listing as it is written."""
    return [asdict(file) for file in listing.values()]


def read_listing(content: bytes, part: str, source: str) -> Listing:
    """Returns the listing of `part` that `content` is.

    Args:
        content: JSON, as `to_json` gives it.
        part: Where the files and their objects must lie.
        source: Where it stands, for errors.

    Raises:
        UnsafeNameError: A file or its object would lie outside of the part.
        RequestError: It is no listing.
    """
    try:
        files = [_whole(StoredFile(**entry)) for entry in json.loads(content)]
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError([f"{source} is no listing of files; delete it to go on without {part}"]) from error
    for file in files:
        _require_in_part(file.path, part, source)
        _require_key(file.key, part, source)
    return {file.path: file for file in files}


def _whole(file: StoredFile) -> StoredFile:
    if not all(type(number) is int and 0 <= number < 2**63 for number in (file.size, file.mtime_ns)):
        raise ValueError("sizes and times are whole numbers")
    return file


def _checked_part(part: str, url: str) -> str:
    source = f"{url}: {LISTINGS}/"
    _require_in_part(part, part, source)
    if part_of(part) != part or part in (*_OWN, TRIALS):
        raise UnsafeNameError([f"{source}: {part!a} is no part of a run directory; remove its listing"])
    return part


def _require_in_part(path: object, part: str, source: str) -> None:
    names = safe_name(path, source).split("/")
    if "/".join(names[: part.count("/") + 1]) != part or any(map(is_passed_over, names)):
        raise UnsafeNameError([f"{source}: {path!a} is no file that a push of {part} brings there"])


def _require_key(key: object, part: str, source: str) -> None:
    if not safe_name(key, source).startswith(f"{part}/"):
        raise UnsafeNameError([f"{source}: the object {key!a} must lie in {part}/"])


def checked_keys(content: bytes, part: str, source: str) -> set[str]:
    """Returns the keys of objects of `part` that a record of replaced ones names.

    Raises:
        UnsafeNameError: One would lie outside of the part.
        RequestError: It is no list.
    """
    _checked_part(part, source)
    try:
        keys = list(json.loads(content))
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError([f"{source} is no list of objects; delete it"]) from error
    for key in keys:
        _require_key(key, part, source)
    return set(keys)
