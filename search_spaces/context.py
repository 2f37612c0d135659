"""What a search space may know besides the Optuna trial."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna


@dataclass(frozen=True, kw_only=True)
class Context:
    """The search that a space is for."""

    rows: int
    """Training rows."""
    negatives: int
    """Negatives that the rows have; a `train_group_size` beyond 1 + negatives would repeat them."""
    start: Mapping[str, Any] = field(default_factory=dict)
    """The user's own settings (trial 1), upstream's defaults filled in. Ranges are widened to hold them."""

    def group_sizes(self, sizes: Iterable[int]) -> list[int]:
        """Returns the `sizes` that the negatives can fill, the user's own among them."""
        return self.with_start("train_group_size", [size for size in sizes if size <= 1 + self.negatives] or [2])

    def batch_sizes(self, sizes: Iterable[int]) -> list[int]:
        """Returns the `sizes` that leave at least 8 steps an epoch, the user's own among them."""
        return self.with_start("per_device_train_batch_size", [size for size in sizes if size * 8 <= self.rows] or [2])

    def group_bounds(self, low: int, high: int) -> tuple[int, int]:
        """Returns (low, high) of `train_group_size`: what the negatives can fill, and the user's own value."""
        return self._whole("train_group_size", low, min(high, 1 + self.negatives))

    def batch_bounds(self, low: int, high: int) -> tuple[int, int]:
        """Returns (low, high) of `per_device_train_batch_size`: at least 8 steps an epoch, and the user's own value."""
        return self._whole("per_device_train_batch_size", low, min(high, self.rows // 8))

    def _whole(self, name: str, low: int, high: int) -> tuple[int, int]:
        wide_low, wide_high = self.bounds(name, min(low, max(1, high)), max(1, high))
        return math.floor(wide_low), math.ceil(wide_high)

    def with_start(self, name: str, choices: Iterable[int]) -> list[int]:
        """Returns `choices` with the user's own value of `name`, sorted."""
        own = self.start.get(name)
        return sorted({*choices, *([] if own is None else [own])})

    def bounds(self, name: str, low: float, high: float) -> tuple[float, float]:
        """Returns (low, high), widened to hold the user's own value of `name`."""
        own = self.start.get(name)
        return (low, high) if own is None else (min(low, own), max(high, own))


SearchSpace = Callable[[optuna.Trial, Context], dict[str, Any]]
"""Suggests from `trial`; returns the suggested values under FlagEmbedding's argument names."""
