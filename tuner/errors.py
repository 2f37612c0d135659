"""What a user can get wrong, and how the program ends."""

from collections.abc import Sequence

EXIT_DONE = 0
EXIT_STOPPED = 1
EXIT_REQUEST = 2
EXIT_ALL_FAILED = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class RequestError(ValueError):
    """The request or the data is wrong: everything found, told together, before any trial starts.

    Args:
        findings: One line each: the rule that was broken, by what value, where, and what to do.
    """

    def __init__(self, findings: Sequence[str]) -> None:
        assert findings, "a RequestError names at least one finding"
        super().__init__("\n".join(findings))
        self.findings = tuple(findings)


class BundleRefusedError(RuntimeError):
    """A library does not embed with the exported model as training did, and so it was not kept; by how much is told.

    The search is finished all the same, with its verdict and its report.
    """


class AllTrialsFailedError(RuntimeError):
    """No trial of the search finished; the message groups the causes with their counts."""
