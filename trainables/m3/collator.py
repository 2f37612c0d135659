"""From samples to batches, with the draws of negatives remembered."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from trainables.m3.batching import Layout
from trainables.m3.tokens import Tokeniser

_DRAWS_KEPT = 8
"""Batches whose generator states are kept: the loader makes one batch before it is needed."""


@dataclass
class Collator:
    """Makes the batches of a training from upstream's samples, of either of its datasets."""

    layout: Layout
    query_tokens: Tokeniser
    passage_tokens: Tokeniser
    draws: dict[int, Any] = field(default_factory=dict)
    """Number of batches made -> state of Python's generator after it, for the last few."""

    def start(self, batches: int) -> None:
        """Goes on counting from a number of batches."""
        self.draws = {batches: random.getstate()}

    def __call__(self, features: list[tuple[Any, ...]]) -> dict[str, Any]:
        made = max(self.draws, default=0) + 1
        self.draws[made] = random.getstate()
        self.draws.pop(made - _DRAWS_KEPT, None)
        return self._batch(features)

    def _batch(self, features: list[tuple[Any, ...]]) -> dict[str, Any]:
        queries, passages, teacher_scores = (_flat(feature[place] for feature in features) for place in range(3))
        batch = self.layout.batch(self.query_tokens(queries), self.passage_tokens(passages))
        alone = len(features[0]) > 3 and features[0][3]
        # as bits, for the trainer makes 16 bits of every other float where DeepSpeed trains in them
        scores = torch.tensor(teacher_scores, dtype=torch.float32).view(torch.int32) if teacher_scores else None
        return batch | {"teacher_scores": scores, "no_in_batch_neg_flag": alone}


def _flat(values: Iterable[Any]) -> list[Any]:
    """Returns the values end to end: texts or lists of texts; None for no scores is left out."""
    lists = [value if isinstance(value, list) else [value] for value in values if value is not None]
    return [item for each in lists for item in each]
