"""The statistics of the verdict on simulated rankings whose true difference is known: coverage and false verdicts.

A query has one relevant passage; the logarithm of its rank is the query's difficulty plus each model's noise, less the
improvement. Intervals are to cover the true difference 93-97% of the time, and without a difference "fine-tune" is to
be said in at most 3.5% of the repeats (2.5% is what the two-sided 95% interval aims at).

    python benchmarks/intervals.py                   # 500 repeats
    python benchmarks/intervals.py --repeats 2000
    python benchmarks/intervals.py --against_scipy   # our bootstrap and permutation test, and SciPy's
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from tuner.verdict import statistics
from tuner.verdict.decision import FINE_TUNE, SIGNIFICANT, decide
from tuner.verdict.statistics import CONFIDENCE, RESAMPLES, Comparison, Floats, compare

_STEPS = (-1.0, -0.63, -0.5, -0.37, 0.37, 0.5, 0.63, 1.0)
"""What a query gains or loses in nDCG@10 when its passage enters, leaves or changes the first ranks."""

IMPROVEMENT = 0.4
"""Of the logarithm of the rank: 0.048 of nDCG@10."""


FEW = (200, 5)
"""Queries, and how many of them move on average, up or down by chance."""


class Rates(NamedTuple):
    """Shares of the repeats."""

    truth: float
    """Mean difference of nDCG@10 over 2,000,000 simulated queries."""
    covered: float
    """Intervals that cover it."""
    found: float
    """Repeats with the difference in which the verdict is "fine-tune"."""
    false: float
    """Repeats without a difference in which it is."""


def measure(*, repeats: int, queries: int, resamples: int = RESAMPLES) -> Rates:
    """Simulates `repeats` searches with the improvement, and as many without."""
    truth = float(pairs(np.random.default_rng(0), 2_000_000, IMPROVEMENT).mean())
    better = _comparisons(repeats, queries, resamples, IMPROVEMENT)
    same = _comparisons(repeats, queries, resamples, 0.0)
    return Rates(
        truth=truth,
        covered=float(np.mean([low <= truth <= high for low, high in (each.ci95 for each in better)])),
        found=float(np.mean([decide(each)[0] == FINE_TUNE for each in better])),
        false=float(np.mean([decide(each)[0] == FINE_TUNE for each in same])),
    )


def few_move(*, repeats: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Returns how often "fine-tune" is said where few queries move by chance, and how often by the interval alone."""
    queries, moving = FEW
    generator = np.random.default_rng(11)
    differences = (
        (generator.random(queries) < moving / queries) * generator.choice(_STEPS, queries) for _ in range(repeats)
    )
    compared = _compared(differences, queries, resamples)
    said = float(np.mean([decide(each)[0] == FINE_TUNE for each in compared]))
    return said, float(np.mean([each.ci95[0] > 0 for each in compared]))


def pairs(generator: np.random.Generator, queries: int, improvement: float) -> Floats:
    """Differences of simulated nDCG@10, shape (queries,); about two thirds of them are ties."""
    difficulty = generator.normal(1, 3, queries)
    before = difficulty + generator.normal(0, 1, queries)
    after = difficulty + generator.normal(0, 1, queries) - improvement
    return _ndcg(after) - _ndcg(before)


def _ndcg(log_rank: Floats) -> Floats:
    rank = np.floor(np.exp(np.clip(log_rank, -5, 8))) + 1
    return np.where(rank <= 10, 1 / np.log2(rank + 1), 0.0)


class Cost(NamedTuple):
    """What a way to the same number gives and takes."""

    share: float
    """Of the repeats: intervals that cover the true difference, or p-values up to 0.05 without a difference."""
    seconds: float
    """CPU seconds of one, on average."""


def _ours(values: Floats, seed: int) -> tuple[float, float]:
    return statistics.bootstrap_interval(values, seed=seed)


def _scipys(method: str, level: Callable[[int], float]) -> Callable[[Floats, int], tuple[float, float]]:
    def interval(values: Floats, seed: int) -> tuple[float, float]:
        found = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=level(len(values)),
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        return float(found.low), float(found.high)

    return interval


INTERVALS: Mapping[str, Callable[[Floats, int], tuple[float, float]]] = {
    "ours": _ours,
    "SciPy's, percentiles": _scipys("percentile", lambda _: CONFIDENCE),
    "SciPy's, percentiles as far out as ours": _scipys("percentile", lambda n: 1 - 2 * statistics.tail(n)),
    "SciPy's, BCa": _scipys("BCa", lambda _: CONFIDENCE),
}


def _sign_flips(values: Floats, seed: int) -> float:
    rng = np.random.default_rng(seed)
    found = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=rng)
    return float(found.pvalue)


P_VALUES: Mapping[str, Callable[[Floats, int], float]] = {
    "ours": lambda values, seed: statistics.permutation_p_value(values, seed=seed),
    "SciPy's": _sign_flips,
}


def against_scipy(*, repeats: int, queries: int) -> Iterator[tuple[str, Cost]]:
    """Yields what each way to an interval and to a p-value gives and takes, on the same simulated pairs."""
    truth = float(pairs(np.random.default_rng(0), 2_000_000, IMPROVEMENT).mean())
    for name, interval in INTERVALS.items():
        found, seconds = _timed(interval, repeats, queries, IMPROVEMENT)
        yield f"interval: {name}", Cost(float(np.mean([low <= truth <= high for low, high in found])), seconds)
    for name, p_value in P_VALUES.items():
        values, seconds = _timed(p_value, repeats, queries, 0.0)
        yield f"p-value: {name}", Cost(float(np.mean(np.array(values) <= SIGNIFICANT)), seconds)


def _timed(
    way: Callable[[Floats, int], Any], repeats: int, queries: int, improvement: float
) -> tuple[list[Any], float]:
    generator = np.random.default_rng(11)
    simulated = [pairs(generator, queries, improvement) for _ in range(repeats)]
    start = time.process_time()
    found = [way(values, seed) for seed, values in enumerate(simulated)]
    return found, (time.process_time() - start) / repeats


def _comparisons(repeats: int, queries: int, resamples: int, improvement: float) -> list[Comparison]:
    generator = np.random.default_rng(11)
    return _compared((pairs(generator, queries, improvement) for _ in range(repeats)), queries, resamples)


def _compared(simulated: Iterable[Floats], queries: int, resamples: int) -> list[Comparison]:
    ids = [str(query) for query in range(queries)]
    before = dict.fromkeys(ids, 0.0)
    return [
        compare(before, dict(zip(ids, after, strict=True)), seed=seed, resamples=resamples)
        for seed, after in enumerate(simulated)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--against_scipy", action="store_true")
    given = parser.parse_args()
    if given.against_scipy:
        print(f"{given.repeats} repeats, {given.queries} queries, {RESAMPLES} resamples")
        for name, cost in against_scipy(repeats=given.repeats, queries=given.queries):
            what = "cover" if name.startswith("interval") else "at most 0.05"
            print(f"{name:<50} {cost.share:7.2%} {what:<13} {1000 * cost.seconds:8.1f} ms of CPU")
        return
    rates = measure(repeats=given.repeats, queries=given.queries)
    print(f"{given.repeats} repeats, {given.queries} queries, true difference {rates.truth:+.4f} nDCG@10")
    print(f"intervals that cover it          {rates.covered:.2%}")
    print(f"'fine-tune' with the difference  {rates.found:.2%}")
    print(f"'fine-tune' without one          {rates.false:.2%}")
    said, alone = few_move(repeats=given.repeats)
    print(f"where about {FEW[1]} of {FEW[0]} queries move, by chance:")
    print(f"'fine-tune'                      {said:.2%} (by the interval alone {alone:.2%})")


if __name__ == "__main__":
    main()
