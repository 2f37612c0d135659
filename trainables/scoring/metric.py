"""What a score is called and what ``--metric`` means. Needs nothing but Python."""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

HEADS = ("dense", "sparse", "colbert", "hybrid")
"""The ways a BGE-M3 model compares a query with a passage; ``hybrid`` is the weighted sum of the other three."""

MEASURES = ("ndcg_at_10", "mrr_at_10", "recall_at_10", "recall_at_100")
"""Names as in MTEB. A score is called ``<head>.<measure>``, for example ``dense.ndcg_at_10``."""

_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_TERM = rf"(?:{_NUMBER}\*)?(?:{'|'.join(HEADS)})\.(?:{'|'.join(MEASURES)})"
_SUM = rf"{_TERM}(?:\+{_TERM})*"
_GRAMMAR = re.compile(rf"{_SUM}(?:,{_SUM})?")


def score_name(head: str, measure: str) -> str:
    """Returns what a score is called: ``dense.ndcg_at_10``."""
    return f"{head}.{measure}"


def head_and_measure(score: str) -> tuple[str, str]:
    """Returns the two parts of what `score_name` made."""
    head, _, measure = score.partition(".")
    return head, measure


def _misspelt(metric: str) -> str:
    """Says which score there is not, and which was meant; nothing where that cannot be told."""
    known = [score_name(head, measure) for head in HEADS for measure in MEASURES]
    for score in re.findall(rf"(?:^|[+,])(?:{_NUMBER}\*)?(\w+\.\w+)", metric):
        if score not in known and (close := difflib.get_close_matches(score, known, n=1, cutoff=0.8)):
            return f"metric {metric}: there is no {score}; did you mean {close[0]}?"
    return ""


@dataclass(frozen=True)
class Objective:
    """One value that the study maximises: a score, or a weighted sum of several."""

    name: str
    """As the user wrote it, without blanks."""
    weights: Mapping[str, float]
    """Name of a score -> its weight."""

    @classmethod
    def read(cls, text: str) -> Self:
        """Reads terms that are joined by ``+``, each ``HEAD.MEASURE`` or ``WEIGHT*HEAD.MEASURE``."""
        weights: dict[str, float] = {}
        for term in text.split("+"):
            weight, _, score = term.rpartition("*")
            weights[score] = weights.get(score, 0.0) + (float(weight) if weight else 1.0)
        return cls(text, weights)

    def value(self, means: Mapping[str, float]) -> float:
        """Returns the sum, from name of a score -> mean."""
        return sum(weight * means[score] for score, weight in self.weights.items())


@dataclass(frozen=True)
class Metric:
    """What ``--metric`` means: one objective, or two of which the study keeps the Pareto front."""

    objectives: tuple[Objective, ...]

    @classmethod
    def read(cls, text: str) -> Self:
        """Reads ``dense.ndcg_at_10``, a weighted sum, or two of these joined by ``,``; blanks do not matter.

        Raises:
            ValueError: It is none of these.
        """
        plain = text.replace(" ", "")
        if _GRAMMAR.fullmatch(plain) is None:
            if near := _misspelt(plain):
                raise ValueError(near)
            raise ValueError(
                f"metric must be HEAD.MEASURE, HEAD one of {', '.join(HEADS)} and MEASURE one of "
                f"{', '.join(MEASURES)}, a weighted sum as 0.7*dense.ndcg_at_10+0.3*hybrid.ndcg_at_10, or two joined "
                f"by a comma, but got {text!r}"
            )
        return cls(tuple(map(Objective.read, plain.split(","))))

    def __str__(self) -> str:
        return ",".join(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """What each objective is called."""
        return tuple(objective.name for objective in self.objectives)

    @cached_property
    def heads(self) -> frozenset[str]:
        """The heads whose scores are in it."""
        return frozenset(head_and_measure(score)[0] for each in self.objectives for score in each.weights)

    @property
    def is_score(self) -> bool:
        """It is one score as it stands, not a sum and not two objectives."""
        return self.names == tuple(self.objectives[0].weights)

    @property
    def is_pareto(self) -> bool:
        """Two objectives are maximised, and the mean of the two ranks."""
        return len(self.objectives) > 1

    @property
    def label(self) -> str:
        """What one value of it is called: of two objectives it is their mean."""
        return f"mean of {' and '.join(self.names)}" if self.is_pareto else str(self)

    def values(self, means: Mapping[str, float]) -> list[float]:
        """Returns the value of each objective, from name of a score -> mean."""
        return [objective.value(means) for objective in self.objectives]

    def value(self, means: Mapping[str, float]) -> float:
        """Returns the one value that ranks: of two objectives their mean."""
        values = self.values(means)
        return math.fsum(values) / len(values)
