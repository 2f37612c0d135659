"""Training states on disk: the newest two of a trial, each whole or not there.

A trial leaves them when it ends: whoever asked for it removes them, once that it ended is known there.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist

from trainables.config import TrialConfig
from trainables.files import flush, sha256, write_text
from trainables.process import rank, world_size

logger = logging.getLogger(__name__)

_KEPT = 2
_PART = 2**25
"""Bytes that go from host to host at once."""
_MANIFEST = "manifest.json"
_FORMAT = 2
"""Of the files beside it, which `ResumableTrainer` reads and writes."""
_FIRST = ".first"
"""A file of the folder that the first worker writes to."""
_OWNER = "config.sha256"
_ELSEWHERE = ("sub_batch_size", "cache_dir", "cache_path")


Capture = Callable[[Path], Mapping[str, Any]]
"""See `States.capture`."""


class Stopped(Exception):  # noqa: N818
    """Nobody needs the state that was being written any more."""


class States:
    """The training states of one trial.

    Args:
        folder: RUN/trials/NAME/resume.
        config: states of another configuration are not used.
    """

    def __init__(self, folder: Path, config: TrialConfig) -> None:
        self._folder = folder
        self._config = config_hash(config)

    def save(self, step: int, capture: Capture) -> None:
        """Saves a state, and comes back when it is on the disk; see `capture`."""
        if write := self.capture(step, capture):
            write(lambda: False)

    def capture(self, step: int, capture: Capture) -> Callable[[Callable[[], bool]], None] | None:
        """Takes hold of a state; every worker calls it.

        Args:
            step: optimizer steps done.
            capture: writes this worker's small files into a folder, which the workers of one machine share, and
                returns what is to be written beside them: file name -> what `torch.save` takes. Nothing that the
                training goes on to change may be in it.

        Returns:
            On the first worker, what writes the state; it needs no other worker and raises `Stopped` once what it is
            given answers yes. On the others None.
        """
        temporary = self._folder / f".{step}.tmp"
        _wait()  # the first worker may have waited for the state before to be written
        self._remove_broken()
        _wait()
        temporary.mkdir(parents=True, exist_ok=True)
        if rank() == 0:
            (temporary / _FIRST).touch()
        contents = capture(temporary)
        _wait()
        _bring_together(temporary)
        is_elsewhere = not (temporary / _FIRST).exists()
        _wait()
        if rank() == 0:
            return lambda is_stopped: self._write(temporary, step, contents, is_stopped)
        if is_elsewhere:
            shutil.rmtree(temporary, ignore_errors=True)
        return None

    def newest(self) -> Path | None:
        """Returns the newest state of this configuration that is whole on every worker's disk, else None.

        What a save that was broken off has left is removed.
        """
        self._remove_broken()
        if world_size() == 1:
            name = next(self._sound(), None)
        else:
            everywhere: list[set[str]] = [set()] * world_size()
            dist.all_gather_object(everywhere, set(self._sound()))
            name = max(set.intersection(*everywhere), default=None)
        return None if name is None else self._folder / name

    def _remove_broken(self) -> None:
        """Removes what saves left that did not end, each as large as a state; while no worker is saving."""
        for broken in self._folder.glob(".*.tmp"):
            shutil.rmtree(broken, ignore_errors=True)

    def _sound(self) -> Iterator[str]:
        for state in self._states():
            if problem := self._problem(state):
                logger.warning("the training state %s is not used: %s", state, problem)
            else:
                yield state.name

    def begin(self) -> None:
        """Removes all states, and says whose the next ones and the reports beside them are; for the first worker."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        write_text(self._folder / _OWNER, self._config)

    @property
    def are_ours(self) -> bool:
        """Whether a trial of this configuration was the last one to begin here."""
        owner = self._folder / _OWNER
        return owner.is_file() and owner.read_text(encoding="utf-8") == self._config

    def _write(self, temporary: Path, step: int, contents: Mapping[str, Any], is_stopped: Callable[[], bool]) -> None:
        try:
            (temporary / _FIRST).unlink()
            small = [file for file in sorted(temporary.rglob("*")) if file.is_file()]
            hashes = {str(file.relative_to(temporary)): _hash(file) for file in small}
            for name, content in contents.items():
                hashes[name] = _save(temporary / name, content, is_stopped)
            for file in small:
                flush(file)
            manifest = {"format": _FORMAT, "config": self._config, "step": step, "files": hashes}
            write_text(temporary / _MANIFEST, json.dumps(manifest))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._put_in_place(temporary, step)

    def _put_in_place(self, temporary: Path, step: int) -> None:
        final = self._folder / f"{step:09d}"
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        flush(self._folder)
        for old in self._states()[_KEPT:]:
            shutil.rmtree(old)

    def _states(self) -> list[Path]:
        """Returns the states on disk, newest first."""
        if not self._folder.is_dir():
            return []
        return sorted((folder for folder in self._folder.iterdir() if folder.name.isdigit()), reverse=True)

    def _problem(self, state: Path) -> str | None:
        try:
            manifest = json.loads((state / _MANIFEST).read_text())
        except (OSError, ValueError) as error:
            return f"its manifest cannot be read ({error})"
        if manifest.get("format") != _FORMAT:
            return "another version of the program wrote it"
        if manifest["config"] != self._config:
            return "it is of another configuration"
        broken = [name for name, value in manifest["files"].items() if _hash(state / name) != value]
        return f"{', '.join(broken)} changed since they were written" if broken else None


def config_hash(config: TrialConfig) -> str:
    """Identifies what a trial computes, on whichever machine its files lie.

    The number of its workers changes how many negatives a query has; `sub_batch_size` bounds its memory and changes
    nothing else.
    """
    values = config.to_dict()
    values["eval_data"] = Path(config.eval_data).name
    values["arguments"] = {
        name: _without_place(value) for name, value in config.arguments.items() if name not in _ELSEWHERE
    }
    parts = {name: values[name] for name in ("arguments", "eval_data", "metric", "rungs", "split")}
    parts["workers"] = world_size()
    if config.pool_hash is not None:
        parts["pool"] = config.pool_hash
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _without_place(value: Any) -> Any:
    """`value` with nothing but the last name of absolute paths."""
    if isinstance(value, list | tuple):
        return [_without_place(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


class _HashingFile:
    """A file that is hashed while it is written.

    Torch's writer does not survive an exception: the first one is kept in `error`, and what comes after it is dropped.

    Args:
        file: open for writing bytes.
        is_stopped: asked before each part.
    """

    def __init__(self, file: BinaryIO, is_stopped: Callable[[], bool]) -> None:
        self._file, self._is_stopped = file, is_stopped
        self.digest = hashlib.sha256()
        self.error: Exception | None = None

    def write(self, part: Any) -> int:
        """Writes bytes, or what has the buffer protocol."""
        if self.error is None:
            try:
                if self._is_stopped():
                    raise Stopped
                self.digest.update(part)
                self._file.write(part)
            except Exception as error:
                self.error = error
        return len(part)

    def flush(self) -> None:
        """Torch calls it; the file is flushed at its end."""


def _save(path: Path, content: Any, is_stopped: Callable[[], bool]) -> str:
    """Writes a file of `torch.save`, flushed to the disk; returns its hash."""
    with path.open("wb") as file:
        hashing = _HashingFile(file, is_stopped)
        torch.save(content, hashing)  # type: ignore[arg-type]
        if hashing.error is not None:
            raise hashing.error
        file.flush()
        os.fsync(file.fileno())
    return hashing.digest.hexdigest()


def _hash(file: Path) -> str:
    return sha256(file) if file.is_file() else "missing"


def _bring_together(folder: Path) -> None:
    """Brings files that only workers on other machines see in `folder` to the first worker's.

    A worker's part of ZeRO's state is of use only with all the others. It goes from host to host: a device has no room.
    """
    if world_size() == 1:
        return
    own = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    seen: list[dict[str, int]] = [{}] * world_size()
    dist.all_gather_object(seen, own)
    lacking = sorted(set().union(*seen).difference(seen[0]))
    if not lacking:
        return
    hosts = dist.new_group(backend="gloo")
    for name in lacking:
        holder = next(number for number, files in enumerate(seen) if name in files)
        if rank() == 0:
            _receive(folder / name, seen[holder][name], holder, hosts)
        elif rank() == holder:
            _send(folder / name, hosts)
    dist.destroy_process_group(hosts)


def _send(path: Path, hosts: Any) -> None:
    with path.open("rb") as file:
        while part := file.read(_PART):
            dist.send(torch.frombuffer(bytearray(part), dtype=torch.uint8), dst=0, group=hosts)


def _receive(path: Path, size: int, holder: int, hosts: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for start in range(0, size, _PART):
            part = torch.empty(min(_PART, size - start), dtype=torch.uint8)
            dist.recv(part, src=holder, group=hosts)
            file.write(part.numpy().data)


def _wait() -> None:
    if world_size() > 1:
        dist.barrier()
