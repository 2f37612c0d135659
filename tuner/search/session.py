"""One process of a search: where it is kept, what was typed, and where it speaks."""

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console

from tuner.errors import printable
from tuner.interrupts import Interrupted
from tuner.request.command_line import code_flags
from tuner.request.config import SearchConfig
from tuner.run_dir.store import RunStore
from tuner.search.terminal import say

if TYPE_CHECKING:
    from trainables.config import Train
    from tuner.run_dir.mirror import Mirror


@dataclass(frozen=True, kw_only=True)
class Session:
    """What every step of a search needs beside the request itself."""

    store: RunStore
    """The run directory."""
    console: Console
    """Where progress is shown."""
    argv: Sequence[str] | None = None
    """The command line, for the record; None: the request came from Python."""
    train: "Train | None" = None
    """What does a job; None: `trainables.worker.loop.train_trial`."""
    started: float = field(default_factory=time.monotonic)
    """When the process began with it."""

    def say(self, line: str, style: str = "") -> None:
        """Prints a line as it is."""
        say(self.console, line, style)

    def warn(self, lines: Sequence[str]) -> None:
        """Prints warnings."""
        for line in lines:
            self.say(f"warning: {printable(line)}", "yellow")

    def again(self, config: SearchConfig) -> str:
        """Returns what follows ``--resume``."""
        return shlex.join([self.store.url, *code_flags(config)])

    @contextmanager
    def ending_in_order(self, config: SearchConfig, mirror: "Mirror | None" = None) -> Iterator[None]:
        """Keeps what there is, and says once how to go on, when the block is interrupted.

        Args:
            config: The search.
            mirror: Told that the search ends before its time.
        """
        try:
            yield
        except Interrupted as interrupted:
            if not interrupted.told:
                kept = "nothing that was finished is lost. Go on with:"
                self.say(f"{interrupted.farewell}; {kept}", "bold")
                self.say(f"python -m tuner.search --resume {self.again(config)}", "bold")
            interrupted.told = True
            if mirror is not None:
                mirror.leave()
            raise
