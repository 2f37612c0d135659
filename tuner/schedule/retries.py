"""Which failures are answered with another attempt, and how often; and storage away, for which no job can start."""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from trainables.config import TrialConfig
from trainables.failures import FailureKind, Planned
from tuner.interrupts import SearchStopped

_PAUSE_SECONDS = 30.0
_PATIENCE_SECONDS = 1800.0

ATTEMPTS = 3
"""How often a job is taken up again after its workers were lost, or after errors that differ."""

_LESS = 0.85
"""Of what a step was planned to take and did not get: estimates are as good as that."""

_TRIALS = 2  # that end by the same error, before others that meet it are not tried again


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job did not end."""

    kind: FailureKind
    message: str
    """The exception in one line."""
    traceback: str = ""
    planned: Planned | None = None
    """Of a training on a GPU: what its steps were planned to take."""


@dataclass(kw_only=True)
class Tries:
    """What has become of a job so far."""

    causes: list[str] = field(default_factory=list)
    """Of each attempt that is counted."""
    rung: int = -1
    """The last that any attempt has reported."""


class Retries:
    """Tells failures of the machine from those of the configuration.

    Out of memory in a training is answered with steps that are planned to take less, in this and in every later trial;
    where nothing was planned, with half the `sub_batch_size`: both are the same gradients in less memory. Where nothing
    is trained, it is an error. Lost workers and errors are tried again, in a fresh process, from the trial's
    last saved state. The same error twice is the end of a trial; where it was the end of two, it is every trial's own,
    and not one machine's. A full disk, storage that is away, a missing place and a machine that is taken away are no
    fault of the job.
    """

    def __init__(self) -> None:
        self._ended: Counter[str] = Counter()
        """Error -> trials that met it twice."""
        self._memory_limit: float | None = None

    def known(self, config: TrialConfig) -> TrialConfig:
        """Returns a job with what its steps may take, as far as this search has found out."""
        return config if self._memory_limit is None else replace(config, memory_limit=self._memory_limit)

    def next_attempt(self, config: TrialConfig, tries: Tries, failure: Failure) -> TrialConfig | None:
        """Returns what to do in the place of the failed `config`; None where nothing would help."""
        if failure.kind == "out_of_memory" and config.rungs:
            return self._in_less_memory(config, failure.planned)
        if failure.kind in ("disk_full", "storage", "no_resources", "preempted"):
            return config
        if failure.kind == "non_finite" or self._is_deterministic(tries, failure):
            return None
        tries.causes.append(_signature(failure))
        return config if len(tries.causes) <= ATTEMPTS else None

    def _in_less_memory(self, config: TrialConfig, planned: Planned | None) -> TrialConfig | None:
        if planned is None:
            return _smaller_sub_batch(config)
        if planned.smallest:
            return None
        self._memory_limit = min(self._memory_limit or planned.bytes, _LESS * planned.bytes)
        return self.known(config)

    def _is_deterministic(self, tries: Tries, failure: Failure) -> bool:
        if failure.kind not in ("error", "out_of_memory"):
            return False
        signature = _signature(failure)
        again = signature in tries.causes
        self._ended[signature] += again
        return again or self._ended[signature] >= _TRIALS


def _signature(failure: Failure) -> str:
    """The message without its numbers: steps and addresses differ where the cause does not."""
    return f"{failure.kind} {re.sub(r'0x[0-9a-f]+|[0-9]+', '#', failure.message)}"


def _smaller_sub_batch(config: TrialConfig) -> TrialConfig | None:
    """Returns `config` with half its `sub_batch_size`; None where it is 1 already.

    The first answer to a whole batch that does not fit is half of its passages.
    """
    arguments = dict(config.arguments)
    size = int(arguments.get("sub_batch_size") or 0)
    if size <= 0:
        size = int(arguments["per_device_train_batch_size"]) * int(arguments["train_group_size"])
    if size <= 1:
        return None
    arguments["sub_batch_size"] = size // 2
    return TrialConfig.from_dict({**config.to_dict(), "arguments": arguments})


class Outage:
    """Says when no job can be started because storage is away.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._why = clock, ""
        self._since, self._last = math.inf, -math.inf

    def met(self, why: str) -> None:
        """A job could not bring its files here or there."""
        now = self._clock()
        if now - self._last > _PATIENCE_SECONDS:
            self._since = now  # the one before has passed
        self._last, self._why = now, why

    def passed(self) -> None:
        """A job brought all of its files there."""
        self._last = -math.inf

    def pause(self, running: int) -> str | None:
        """Says why no job is to be started beside the `running` ones; None when it is time to try.

        Raises:
            SearchStopped: Storage has been away for half an hour.
        """
        now = self._clock()
        if now - self._last > _PAUSE_SECONDS:
            return None
        if not running and now - self._since > _PATIENCE_SECONDS:
            raise SearchStopped(self._why)
        return f"paused: {self._why}; the search goes on by itself when it can be reached"
