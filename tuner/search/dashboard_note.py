"""The verdict as a note of the study, which optuna-dashboard shows beside it."""

import importlib.util
import logging
from collections.abc import Iterator, Sequence

from optuna import Study

from trainables.scoring.metric import Metric
from tuner.errors import printable
from tuner.verdict.decision import interval
from tuner.verdict.result import MovedQuery, Verdict

logger = logging.getLogger(__name__)

_SHOWN = 5
_CHARACTERS = 160
_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]()<>#+-.!|~&"})


def note_verdict(study: Study, result: Verdict) -> None:
    """Writes the note, where optuna-dashboard is installed; one that cannot be written costs nothing else."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        return
    from optuna_dashboard import save_note

    try:
        save_note(study, note(result))
    except Exception as error:
        logger.warning("the verdict was not written into optuna-dashboard's note: %s", error)


def note(result: Verdict) -> str:
    """Returns the verdict, what it rests on, and the queries that moved most, in Markdown."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: Verdict) -> Iterator[str]:
    yield f"# {result.verdict.capitalize()}\n\n{_escaped(result.reason)}\n"
    if (best := result.best) is None:
        return
    yield f"| {_escaped(Metric.read(result.metric).label)} | dev | test |\n|---|---|---|"
    named = {"base model": result.compared, "your settings": result.user, f"best, trial {best.trial}": best}
    for title, model in named.items():
        if model is not None:
            yield f"| {title} | {_score(model.dev)} | {_score(model.test)} |"
    yield f"\nGain {best.gain:+.4f} ({interval(best)}, p = {best.p_value:.4f})."
    yield from _queries("Got worse most", result.queries.lost)
    yield from _queries("Got better most", result.queries.gained)


def _queries(title: str, queries: Sequence[MovedQuery]) -> Iterator[str]:
    if queries:
        yield f"\n## {title}\n"
    for query in queries[:_SHOWN]:
        yield f"- {query.before:.2f} → {query.after:.2f}: {_escaped(query.text[:_CHARACTERS])}"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _escaped(text: str) -> str:
    """Text that others wrote, in one line without any mark of Markdown's."""
    return printable(" ".join(text.split())).translate(_MARKS)
