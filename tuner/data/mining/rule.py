"""Which of the passages near to a query become its negatives: `mine_hard_negatives`'s rules, under its names."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

SAMPLING_STRATEGIES = ("top", "random")

Scored = tuple[str, float]
"""A passage and its score."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The arguments of sentence-transformers' `mine_hard_negatives` that say what is taken.

    They are applied here and not by the library, which counts nothing and cannot look at negatives that are there.
    """

    range_min: int = 0
    """How many of the nearest passages are passed over, after those too near to the positive are removed."""
    range_max: int | None = None
    """How many of the nearest passages are looked at. None: `range_min` and ten for each negative."""
    max_score: float | None = None
    """The highest score of a negative."""
    min_score: float | None = None
    """The lowest."""
    absolute_margin: float | None = None
    """How far below its positive's score a negative's must lie."""
    relative_margin: float | None = 0.05
    """The same, as a share of the positive's: NV-Retriever's 95% (arXiv 2407.15831)."""
    num_negatives: int = 7
    """Negatives of a row: with the positive, the group of 8 of the BGE-M3 paper."""
    sampling_strategy: str = "top"
    """``top``: the nearest that are left; ``random``: any of them."""

    @property
    def reach(self) -> int:
        """How many passages are looked at."""
        return self.range_min + 10 * self.num_negatives if self.range_max is None else self.range_max

    def problems(self) -> list[str]:
        """Returns one line for each value that is out of range."""
        numbers = {name: value for name, value in dataclasses.asdict(self).items() if isinstance(value, float)}
        checks = [
            (math.isfinite(value), f"--{name} must be finite, but got {value}") for name, value in numbers.items()
        ]
        checks += [
            (self.num_negatives >= 1, f"--num_negatives must be 1 or more, but got {self.num_negatives}"),
            (self.range_min >= 0, f"--range_min must be 0 or more, but got {self.range_min}"),
            (
                self.reach - self.range_min >= self.num_negatives,
                f"--range_max must be at least range_min + num_negatives, {self.range_min + self.num_negatives}, "
                f"but got {self.reach}",
            ),
            (
                self.sampling_strategy in SAMPLING_STRATEGIES,
                f"--sampling_strategy must be {' or '.join(SAMPLING_STRATEGIES)}, but got {self.sampling_strategy!r}",
            ),
        ]
        return [message for holds, message in checks if not holds]

    def highest(self, positives: Sequence[float]) -> float:
        """Returns the highest score that a negative may have beside positives of these scores; their least counts.

        A passage above it is taken for a positive that nobody has marked.
        """
        bounds = [math.inf if self.max_score is None else self.max_score]
        if positives:
            least = min(positives)
            bounds += [least - margin for margin in [self.absolute_margin] if margin is not None]
            bounds += [least - abs(least) * margin for margin in [self.relative_margin] if margin is not None]
        return min(bounds)

    def choose(self, candidates: Sequence[Scored], highest: float, draw: Random) -> list[Scored]:
        """Returns the negatives among `candidates`, which come with the highest score first, in the same order."""
        lowest = -math.inf if self.min_score is None else self.min_score
        fit = [(passage, score) for passage, score in candidates if lowest <= score <= highest][self.range_min :]
        if self.sampling_strategy == "top" or len(fit) <= self.num_negatives:
            return fit[: self.num_negatives]
        return [fit[number] for number in sorted(draw.sample(range(len(fit)), self.num_negatives))]
