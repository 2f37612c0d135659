"""The lease of a run directory on object storage: one search at a time, and soon another's where that one is dead.

A search keeps an object of its own, ``leases/HOST-DIGITS.json``, that is never old while the search lives. Ages are
differences of the storage's own times, because machines' clocks differ.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuner.errors import RequestError
from tuner.interrupts import SearchStopped
from tuner.run_dir.object_storage import write_whole

_RENEW_SECONDS = 10.0
_STALE_SECONDS = 60.0
"""A search that was not heard of for so long has lost its lease to whoever asks for it."""


class Lease:
    """One search's right to write below a prefix.

    Args:
        url: The run directory as the user named it.
        files: Its file system.
        root: Its path there.
        local: The working directory. A search that goes on in the one it began in need not wait for its own lease.
    """

    def __init__(self, url: str, files: Any, root: str, local: Path) -> None:
        self._url, self._files, self._folder, self._local = url, files, f"{root}/leases", local
        self._path, self._renewed, self._lost = "", 0.0, False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lease for a block, renewed from a thread of its own: a long push must not cost it.

        Raises:
            RequestError: Another search holds it, or nothing can be written there.
        """
        self._take()
        over = threading.Event()
        thread = threading.Thread(target=self._keep, args=(over,), daemon=True, name="lease")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._give_up()

    def check(self) -> None:
        """As `require`, and asks storage where the lease may be another's by now; before anything is written.

        Raises:
            SearchStopped: Another search has it.
            OSError: Storage cannot be reached.
        """
        if self._path and time.time() - self._renewed > _STALE_SECONDS:
            self._renew()
        self.require()

    def require(self) -> None:
        """Says so where this search held the lease and is known to have lost it.

        Raises:
            SearchStopped: Another search has it.
        """
        if self._lost:
            raise SearchStopped(
                f"{self._url}: another search has taken this one's place, after {_STALE_SECONDS:.0f} s without a sign "
                "of it"
            )

    def _take(self) -> None:
        self._path = f"{self._folder}/{socket.gethostname()}-{self._digits()}.json"
        try:
            self._write()
            others = self._ages()
            self._refuse_beside(others)
            for path in others:
                self._files.delete_file(path)
        except OSError as error:
            raise RequestError(
                [f"{self._url} cannot be written: {error}; check bucket, region and credentials"]
            ) from error

    def _refuse_beside(self, others: dict[str, float]) -> None:
        path, age = min(others.items(), key=lambda item: item[1], default=("", _STALE_SECONDS))
        if age >= _STALE_SECONDS:
            return
        owner = self._owner(path)
        self._give_up()
        raise RequestError(
            [
                f"{self._url}: another search is running there, {owner}, last heard of {age:.0f} s ago; name another "
                f"prefix, or if that search was killed, try again in {_STALE_SECONDS - age:.0f} s"
            ]
        )

    def _ages(self) -> dict[str, float]:
        """How much older than this search's each other lease is, in seconds."""
        from pyarrow.fs import FileSelector

        found = {info.path: info for info in self._files.get_file_info(FileSelector(self._folder))}
        now = found.pop(self._path).mtime_ns
        return {path: (now - info.mtime_ns) / 1e9 for path, info in found.items() if path.endswith(".json")}

    def _owner(self, path: str) -> str:
        try:
            with self._files.open_input_stream(path) as stream:
                return str(json.loads(stream.read())["owner"])
        except FileNotFoundError:
            return "which is just ending"

    def _keep(self, over: threading.Event) -> None:
        while not over.wait(_RENEW_SECONDS) and not self._lost:
            with contextlib.suppress(OSError):  # storage is away; the next time may come before another search
                self._renew()

    def _renew(self) -> None:
        from pyarrow.fs import FileType

        self._lost = self._files.get_file_info(self._path).type == FileType.NotFound
        if not self._lost:
            self._write()

    def _write(self) -> None:
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        write_whole(self._files, self._path, json.dumps({"owner": owner}).encode())
        self._renewed = time.time()

    def _give_up(self) -> None:
        with contextlib.suppress(OSError):  # it is another's already, or will soon be too old to count
            self._files.delete_file(self._path)

    def _digits(self) -> str:
        kept = self._local / ".lease"
        if not kept.exists():
            kept.write_text(secrets.token_hex(4))
        return kept.read_text()
