"""Retrieval measures of a ranking, and the scores of a model on one split. Needs no torch."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from trainables.scoring.metric import MEASURES, Metric, score_name

DEPTH = 100
"""The longest ranking a measure looks at."""


def measure(ranking: Sequence[str], relevant: Mapping[str, int]) -> dict[str, float]:
    """Compute every measure for one query, as trec_eval does.

    Args:
        ranking: passage ids, best first, at least the ``DEPTH`` best of the corpus (fewer when the corpus is smaller).
        relevant: passage id -> relevance. The relevance is the gain of nDCG; zero and below is not relevant.

    Returns:
        measure -> value in [0, 1]. A query without a relevant passage gets 0 everywhere.
    """
    gains = [max(relevant.get(passage, 0), 0) for passage in ranking]
    ideal = sorted((gain for gain in relevant.values() if gain > 0), reverse=True)
    first = next((rank for rank, gain in enumerate(gains[:10], start=1) if gain), math.inf)
    found = {k: sum(gain > 0 for gain in gains[:k]) for k in (10, DEPTH)}
    return {
        "ndcg_at_10": _dcg(gains[:10]) / _dcg(ideal[:10]) if ideal else 0.0,
        "mrr_at_10": 1 / first,
        "recall_at_10": found[10] / max(len(ideal), 1),
        "recall_at_100": found[DEPTH] / max(len(ideal), 1),
    }


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model scored on the queries of one split."""

    split: str
    """``dev`` or ``test``: the name of the file in ``qrels/``."""
    per_query: dict[str, dict[str, float]]
    """metric -> query id -> value in [0, 1]."""
    retrieved: dict[str, list[str]]
    """query id -> ids of the ten best passages of the dense head (of the first head scored, without dense)."""
    means: dict[str, float] = field(init=False)
    """metric -> mean over the queries."""

    def __post_init__(self) -> None:
        means = {metric: math.fsum(values.values()) / len(values) for metric, values in self.per_query.items()}
        object.__setattr__(self, "means", means)

    def with_metric(self, metric: str) -> Scores:
        """Returns these scores and `metric`, where that is a sum of others; of several objectives it is their mean.

        One value ranks trials and is compared query by query. Weights are linear, so that the mean over queries of the
        sum is the sum of the means.
        """
        if metric in self.per_query:
            return self
        queries = next(iter(self.per_query.values()))
        asked = Metric.read(metric)
        values = {
            query: asked.value({name: of_query[query] for name, of_query in self.per_query.items()})
            for query in queries
        }
        return replace(self, per_query=self.per_query | {metric: values})

    @classmethod
    def of(
        cls, split: str, rankings: Mapping[str, Mapping[str, list[str]]], qrels: Mapping[str, Mapping[str, int]]
    ) -> Scores:
        """Measure rankings (head -> query id -> passage ids, best first) against the judgements of a split."""
        per_query: dict[str, dict[str, float]] = {score_name(head, name): {} for head in rankings for name in MEASURES}
        for head, of_query in rankings.items():
            for query, ranking in of_query.items():
                for name, value in measure(ranking, qrels[query]).items():
                    per_query[score_name(head, name)][query] = value
        shown = rankings.get("dense") or next(iter(rankings.values()))
        return cls(split=split, per_query=per_query, retrieved={query: ids[:10] for query, ids in shown.items()})

    def packed(self, metric: str) -> str:
        """Return the values of a metric in the order of the query ids, as `packed` writes them."""
        return packed([value for _, value in sorted(self.per_query[metric].items())])

    def to_json(self) -> str:
        """Return the text of ``dev.json`` and ``test.json`` in a trial's folder."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Scores:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        return cls(split=fields["split"], per_query=fields["per_query"], retrieved=fields["retrieved"])


def packed(values: Sequence[float]) -> str:
    """Write values in [0, 1] as a short text: half-precision floats, compressed; about 1 character a query."""
    return base64.b85encode(zlib.compress(np.asarray(values, dtype="<f2").tobytes(), 9)).decode()


def unpacked(text: str) -> list[float]:
    """Read what `packed` wrote, to 3 digits."""
    values: list[float] = np.frombuffer(zlib.decompress(base64.b85decode(text)), dtype="<f2").astype(float).tolist()
    return values
