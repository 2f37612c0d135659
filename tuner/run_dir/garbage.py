"""Objects that no listing names any more: removed late, and only by the search that holds the lease.

Whoever replaces a file of a part leaves a record of its object. A reader may be reading it just then, and a machine
that slept may bring back the listing that names it; after a while, the holder of the lease removes what is still not
named. What a push that was killed had brought has no record: it goes when it is a day old.
"""

import contextlib
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator

from trainables.names import CURVES
from tuner.interrupts import SearchStopped
from tuner.run_dir.lease import Lease
from tuner.run_dir.names import TRIALS
from tuner.run_dir.prefix import REPLACED, Prefix, checked_keys

logger = logging.getLogger(__name__)

_KEPT_SECONDS = 120.0
"""How long a replaced object stays: twice what it takes to lose a lease."""
_ORPHAN_SECONDS = 86400.0
"""How long an object may be on its way to its listing."""
_COLLECT_SECONDS = 30.0
_SWEEP_SECONDS = 3600.0
_RECORD = re.compile(rf"{REPLACED}/(.+)/[^/]+\.json")
_PUSHED = re.compile(rf"(?:(?:{TRIALS}|{CURVES})/[^/]+|[^/]+)/\d{{8}}T\d{{6}}-[0-9a-f]{{4}}/.+")
"""Keys that a push gives; whatever else lies below the prefix is not ours."""


class Garbage:
    """What is to be removed below a prefix.

    Args:
        prefix: The run directory in storage.
        lease: Its lease; nothing is removed without it.
    """

    def __init__(self, prefix: Prefix, lease: Lease) -> None:
        self._prefix, self._lease = prefix, lease

    def replaced(self, part: str, keys: Iterable[str]) -> None:
        """Records that the next listing of `part` names these objects no more."""
        if gone := sorted(keys):
            self._prefix.write(f"{REPLACED}/{part}/{push_name()}.json", json.dumps(gone).encode())

    def collect(self, *, at_once: bool = False) -> None:
        """Removes what was replaced a while ago, or `at_once` all of it, where no other process is at work any more.

        Raises:
            SearchStopped: Another search has the lease.
            OSError: Storage cannot be reached.
        """
        if not self._lease.name:
            return
        latest = self._lease.last_renewed() - int(_KEPT_SECONDS * 1e9)
        for record in self._prefix.objects(REPLACED):
            match = _RECORD.fullmatch(record.key)
            if match and (at_once or record.mtime_ns <= latest):
                self._remove_replaced(match[1], record.key)

    def sweep(self) -> None:
        """Removes what pushes brought that never came to their listing, a day later.

        Raises:
            SearchStopped: Another search has the lease.
            OSError: Storage cannot be reached.
        """
        if not self._lease.name:
            return
        latest = self._lease.last_renewed() - int(_ORPHAN_SECONDS * 1e9)
        old = {stored.key for stored in self._prefix.objects() if stored.mtime_ns <= latest}
        listings = [self._prefix.listing(part) for part in self._prefix.parts()]  # after the objects, which came first
        named = {file.key for listing in listings for file in listing.values()}
        for key in filter(_PUSHED.fullmatch, old - named):
            self._remove(key)

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Collects and sweeps during a block, from a thread of its own."""
        over = threading.Event()
        thread = threading.Thread(target=self._keep_clean, args=(over,), daemon=True, name="garbage")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _keep_clean(self, over: threading.Event) -> None:
        swept = float("-inf")
        while not over.wait(_COLLECT_SECONDS):
            try:
                self.collect()
                if time.monotonic() - swept > _SWEEP_SECONDS:
                    self.sweep()
                    swept = time.monotonic()
            except SearchStopped:  # another search has the place, and collects
                return
            except OSError:
                pass  # storage is away; later will do
            except Exception as error:
                logger.warning("%s: what was replaced there stays: %s", self._prefix.url, error)

    def _remove_replaced(self, part: str, record: str) -> None:
        keys = checked_keys(self._prefix.read(record), part, f"{self._prefix.url}: {record}")
        named = {file.key for file in self._prefix.listing(part).values()}
        for key in keys - named:
            self._remove(key)
        self._remove(record)

    def _remove(self, key: str) -> None:
        self._lease.check()
        self._prefix.remove(key)


def push_name() -> str:
    """Returns a name that no other push has, with the time."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
