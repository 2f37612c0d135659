"""Files that are whole or not there: written under another name, flushed to the disk, then renamed."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes a file at once."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    temporary.replace(path)


def append_line(path: Path, line: str) -> None:
    """Appends a line and flushes it to the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `path` when the block ends without an exception."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    for file in temporary.rglob("*"):
        if file.is_file():
            flush(file)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def settle_folder(path: Path) -> None:
    """Ends what a `new_folder` that was killed had begun: what `path` was before comes back, and nothing else stays."""
    temporary, old = (path.with_name(f".{path.name}.{ending}") for ending in ("tmp", "old"))
    if old.exists() and not path.exists():
        old.rename(path)
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def whole_records(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yields what stands whole in a metrics.jsonl: a kill or a full disk may have cut a line short."""
    for line in path.read_text("utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)
