"""What is wrong, or only odd, in data: told by file and row, and never without bound."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tuner.errors import printable

MAX_FATAL_LISTED = 50
MAX_WARNINGS_LISTED = 10


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found in one place; `str` gives the line that a person reads."""

    file: str
    """The path as it was given."""

    row: int | None
    """Line number from 1, or None for a finding about the whole file."""

    rule: str
    """Short name of what was broken, equal for all rows broken in the same way."""

    message: str
    """The rule, the value, and what to do."""

    fatal: bool
    """Whether training cannot start, or could but means something else than it seems to."""

    def __str__(self) -> str:
        return self._line("" if self.fatal else "warning: ")

    @property
    def unmarked(self) -> str:
        """The line without the word that tells a warning, for lists that hold nothing else."""
        return self._line("")

    def _line(self, mark: str) -> str:
        place = self.file if self.row is None else f"{self.file}:{self.row}"
        return printable(f"{place}: {mark}{self.message}")


class Findings:
    """Collects findings; of each rule the first ones are kept and the others counted, so that memory is bounded."""

    def __init__(self) -> None:
        self._kept: list[Finding] = []
        self._counts: Counter[tuple[str, bool]] = Counter()

    def add(self, file: str, row: int | None, fault: tuple[str, str], *, fatal: bool = True) -> None:
        """Adds one finding.

        Args:
            file: The path as the user gave it.
            row: Line number from 1, None for the whole file.
            fault: The rule's short name, and the message.
            fatal: Whether it is refused.
        """
        rule, message = fault
        self._counts[rule, fatal] += 1
        if self._counts[rule, fatal] <= _listed(fatal):
            self._kept.append(Finding(file=file, row=row, rule=rule, message=message, fatal=fatal))

    def all(self) -> list[Finding]:
        """Returns the findings as they came, each rule that has too many ending in the count of the others."""
        return [*self._kept, *self._rest()]

    def _rest(self) -> Iterable[Finding]:
        for (rule, fatal), count in self._counts.items():
            if count > _listed(fatal):
                last = [finding for finding in self._kept if (finding.rule, finding.fatal) == (rule, fatal)][-1]
                yield replace(last, row=None, message=f"{count - _listed(fatal):,} more of this kind ({rule})")

    def counts(self) -> tuple[int, int]:
        """Returns how many fatal findings and how many warnings there were, listed or not."""
        fatal = sum(count for (_, is_fatal), count in self._counts.items() if is_fatal)
        return fatal, sum(self._counts.values()) - fatal


def _listed(fatal: bool) -> int:
    return MAX_FATAL_LISTED if fatal else MAX_WARNINGS_LISTED
