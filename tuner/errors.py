"""What a user can get wrong, and how the program ends."""

import re
from collections.abc import Sequence

EXIT_DONE = 0
EXIT_STOPPED = 1
EXIT_REQUEST = 2
EXIT_ALL_FAILED = 3
EXIT_HUNG_UP = 129
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What steers a terminal or turns the direction of a line, and halves of surrogate pairs, which nothing can write."""


def printable(text: str) -> str:
    """Returns `text` with what a terminal would obey written as Python writes it (``\\x1b``).

    Texts of rows and names of files come from whoever made the data. Tabs and ends of lines stay.
    """
    return _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def counted(number: int, thing: str) -> str:
    """Returns ``1 row``, ``2 rows``, ``1,000 queries``."""
    plural = f"{thing[:-1]}ies" if thing.endswith(("ry", "ty")) else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"


class RequestError(ValueError):
    """The request or the data is wrong: everything found, told together, before any trial starts.

    Args:
        findings: One line each: the rule that was broken, by what value, where, and what to do. They are kept as
            `printable` returns them.
    """

    def __init__(self, findings: Sequence[str]) -> None:
        assert findings, "a RequestError names at least one finding"
        findings = [printable(finding) for finding in findings]
        super().__init__("\n".join(findings))
        self.findings = tuple(findings)


class AnotherSearchError(RequestError):
    """The request is for another search than the one that is there: their trials could not be compared."""


class BundleRefusedError(RuntimeError):
    """A library does not embed with the exported model as training did, and so it was not kept; by how much is told.

    The search is finished all the same, with its verdict and its report.
    """


class AllTrialsFailedError(RuntimeError):
    """No trial of the search finished; the message groups the causes with their counts."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
