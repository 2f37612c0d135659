"""The lease of a run directory on object storage: one search at a time, and soon another's where that one is dead.

A search keeps an object of its own, ``leases/GENERATION-HOST-DIGITS.json``, that is never old while the search lives.
Ages are differences of the storage's own times, because machines' clocks differ. A generation is higher than all before
it, those that ended included (``.ended``): storage cannot refuse the write of a machine that slept through its turn, so
whoever has written a lease looks who else is there, and gives up beside one that is not of an earlier generation.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tuner.errors import RequestError
from tuner.interrupts import SearchStopped
from tuner.run_dir.prefix import LEASES, Prefix

logger = logging.getLogger(__name__)

_RENEW_SECONDS = 10.0
_STALE_SECONDS = 60.0
"""A search that was not heard of for so long has lost its lease to whoever asks for it."""
_TRIES = 3
_NAME = re.compile(r"(?:(\d{6,})-)?(.+-[0-9a-f]{8})\.(json|asks|ended)")
"""Generation, whose, and what: a lease, the question for one, or the sign that one was given up."""
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while the machine sleeps, and is never set back."""


class LeaseLostError(OSError):
    """The search that a worker belongs to has lost its run directory to another search."""


class _Leases:
    """The objects that searches leave for each other below a prefix: leases, questions, signs of ended ones.

    Args:
        prefix: The run directory in storage.
    """

    def __init__(self, prefix: Prefix) -> None:
        self._prefix = prefix

    def times(self) -> dict[str, int]:
        """Returns the names that are there, with the storage's times of them in nanoseconds."""
        found = {lease.key.removeprefix(f"{LEASES}/"): lease.mtime_ns for lease in self._prefix.objects(LEASES)}
        return {name: when for name, when in found.items() if "/" not in name and _NAME.fullmatch(name)}

    def write(self, name: str) -> None:
        """Writes a lease or a question of this process."""
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        self._prefix.write(f"{LEASES}/{name}", json.dumps({"owner": owner}).encode())

    def sign_ended(self, name: str) -> None:
        """Writes that the lease `name` was given up."""
        self._prefix.write(f"{LEASES}/{name.removesuffix('.json')}.ended", b"{}")

    def remove(self, name: str) -> None:
        """Removes one, where it is there."""
        self._prefix.remove(f"{LEASES}/{name}")

    def owner(self, name: str) -> str:
        """Returns who wrote a lease, in words."""
        try:
            return ascii(json.loads(self._prefix.read(f"{LEASES}/{name}"))["owner"]).strip("'")
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return "which is just ending"


class Lease:
    """One search's right to write below a prefix.

    Args:
        prefix: The run directory in storage.
        local: The working directory. A search that goes on in the one it began in need not wait for its own lease.
    """

    def __init__(self, prefix: Prefix, local: Path) -> None:
        self._leases, self._url, self._local = _Leases(prefix), prefix.url, local
        self.name = ""
        """The object's name, where this search holds the lease; workers look for it."""
        self._renewed, self._lost, self._renewing = 0.0, False, threading.Lock()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lease for a block, renewed from a thread of its own: a long push must not cost it.

        Raises:
            RequestError: Another search holds it, or nothing can be written there.
        """
        self.take()
        over = threading.Event()
        thread = threading.Thread(target=self._keep, args=(over,), daemon=True, name="lease")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._end()

    def check(self) -> None:
        """As `require`, and asks storage where the lease may be another's by now; before anything is written.

        Raises:
            SearchStopped: Another search has it.
            OSError: Storage cannot be reached.
        """
        if self.name and _now() - self._renewed > _STALE_SECONDS / 2:
            self.renew()
        self.require()

    def require(self) -> None:
        """Says so where this search held the lease and is known to have lost it.

        Raises:
            SearchStopped: Another search has it.
        """
        if self._lost:
            raise SearchStopped(_taken(self._url))

    def last_renewed(self) -> int:
        """Returns the storage's own time of this lease in nanoseconds: ages there are differences to it.

        Raises:
            SearchStopped: Another search has it.
            OSError: Storage cannot be reached.
        """
        found = self._leases.times()
        if self.name not in found:
            self.renew()  # it finds that another has it
        self.require()
        return found.get(self.name, 0)

    def take(self) -> None:
        """Takes the lease.

        Raises:
            RequestError: Another search holds it, or nothing can be written there.
        """
        try:
            for _ in range(_TRIES):
                if self._try_to_take(self._ask()):
                    return
        except OSError as error:
            raise RequestError(
                [f"{self._url} cannot be written: {error}; check bucket, region and credentials"]
            ) from error
        raise RequestError([f"{self._url}: several searches begin there at once; try again in a minute"])

    def renew(self) -> None:
        """Says that this search lives, where its place was not taken.

        Raises:
            OSError: Storage cannot be reached.
        """
        with self._renewing:
            started = _now()
            if self._is_ours():
                # after a pause here another may have taken the place, and even given it up again
                self._leases.write(self.name)
            if not self._is_ours():
                self._lost = True
                self._leases.remove(self.name)
            self._renewed = started

    def _ask(self) -> int:
        """Refuses beside a search that lives; returns the generation that comes next."""
        question = f"{self._owner()}.asks"
        self._leases.write(question)
        try:
            found = self._leases.times()
            self._refuse_beside(_ages(found, question))
        finally:
            self._leases.remove(question)
        return 1 + max(map(_generation, found))

    def _try_to_take(self, generation: int) -> bool:
        """Takes the lease with a generation that was the next one a moment ago; returns whether it still was."""
        self.name, started = f"{generation:06d}-{self._owner()}.json", _now()
        self._leases.write(self.name)
        found = self._leases.times()
        if self.name in found:
            self._refuse_beside(_ages(found, self.name))
        if _outlives(found, self.name):
            for name in found.keys() - {self.name}:
                if not name.endswith(".asks"):  # whoever asks removes it
                    self._leases.remove(name)
            self._renewed, self._lost = started, False
            return True
        self._give_up()
        return False

    def _refuse_beside(self, others: dict[str, float]) -> None:
        own = f"-{self._owner()}.json"
        living = {name: age for name, age in others.items() if age < _STALE_SECONDS and not name.endswith(own)}
        if not living:
            return
        name, age = min(living.items(), key=lambda item: item[1])
        owner = self._leases.owner(name)
        self._give_up()
        raise RequestError(
            [
                f"{self._url}: another search is running there, {owner}, last heard of {max(age, 0):.0f} s ago; name "
                f"another prefix, or if that search was killed, try again in {_STALE_SECONDS - age:.0f} s"
            ]
        )

    def _is_ours(self) -> bool:
        return _outlives(self._leases.times(), self.name)

    def _keep(self, over: threading.Event) -> None:
        while not over.wait(_RENEW_SECONDS) and not self._lost:
            try:
                self.renew()
            except OSError:
                pass  # storage is away; the next time may come before another search
            except Exception as error:  # `check` asks again before anything is written
                logger.warning("the lease of %s was not renewed: %s", self._url, error)

    def _end(self) -> None:
        """Gives the lease up, and leaves a sign that its generation was: one that slept must not take it for free."""
        if self.name and not self._lost:
            with contextlib.suppress(OSError):
                self._leases.sign_ended(self.name)
        self._give_up()

    def _give_up(self) -> None:
        if self.name:
            with contextlib.suppress(OSError):  # it is another's already, or will soon be too old to count
                self._leases.remove(self.name)
        self.name = ""

    def _owner(self) -> str:
        kept = self._local / ".lease"
        if not kept.exists() or not re.fullmatch("[0-9a-f]{8}", kept.read_text()):
            kept.write_text(secrets.token_hex(4))
        return f"{socket.gethostname()}-{kept.read_text()}"


class DriversLease:
    """The lease that a worker's driver held when it sent the worker, seen from there.

    Args:
        prefix: The run directory in storage.
        name: `Lease.name` of the driver's.
    """

    def __init__(self, prefix: Prefix, name: str) -> None:
        self._leases, self._url, self._name = _Leases(prefix), prefix.url, name

    def check(self) -> None:
        """Asks storage whether the driver's search still has the run directory; before anything is written.

        Raises:
            LeaseLostError: Another search has it.
            OSError: Storage cannot be reached.
        """
        if not _outlives(self._leases.times(), self._name):
            raise LeaseLostError(_taken(self._url))


def _ages(found: dict[str, int], mine: str) -> dict[str, float]:
    """How much older than `mine` each other lease is, in seconds."""
    others = {name: when for name, when in found.items() if name.endswith(".json") and name != mine}
    return {name: (found[mine] - when) / 1e9 for name, when in others.items()}


def _outlives(found: dict[str, int], mine: str) -> bool:
    """Whether the lease `mine` is there, and none that is not of an earlier generation."""
    return mine in found and all(_generation(name) < _generation(mine) for name in found if name != mine)


def _generation(name: str) -> int:
    """The generation of a lease; 0 of a question."""
    match = _NAME.fullmatch(name)
    return int(match[1] or 0) if match and match[3] != "asks" else 0


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _taken(url: str) -> str:
    return f"{url}: another search has taken this one's place, after {_STALE_SECONDS:.0f} s without a sign of it"
