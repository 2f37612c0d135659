"""A made-up table in the recorded tables' format, to try replays without one.

It is plausible and no more: learning rates that are too large diverge from what the model knew, temperatures and groups
have a shallow optimum, curves rise at the learning rate's pace and bend where it decays, and every query has its own
difficulty and luck.
"""

from typing import Any

import numpy as np
from scipy.stats import qmc

from benchmarks.recorded_table import FRACTIONS, Floats, Integers, RecordedTable

_RANGES = {
    "learning_rate": (1e-5, 1e-3),
    "temperature": (0.005, 0.2),
    "train_group_size": (1.0, 8.0),
    "per_device_train_batch_size": (4.0, 64.0),
}
_SEEDS = (42, 43, 44)


def synthetic_table(task: int, *, configs: int = 96, dev: int = 300, test: int = 400) -> RecordedTable:
    """Returns table number `task`: each has its own optimum and its own difficulty."""
    generator = np.random.default_rng(1000 + task)
    unit = qmc.Sobol(4, seed=generator).random(128)[:configs]
    values = {name: _scaled(unit[:, i], *bounds) for i, (name, bounds) in enumerate(_RANGES.items())}
    sizes = {name: np.round(values.pop(name)).astype(np.int64) for name in list(values)[2:]}
    config, seed, budget = _runs(configs)
    gains = _gains(generator, unit)[config] + 0.02 * generator.standard_normal(len(config))
    curves = _curves(unit[config, 0], gains, budget)
    fields: dict[str, Any] = {**values, **sizes, **_scores(generator, curves, {"dev": dev, "test": test})}
    return RecordedTable(
        **fields,
        config=config,
        seed=seed,
        budget=budget,
        schedule=np.array(["linear"] * len(config)),
        fractions=np.array(FRACTIONS),
        meta={"task": f"synthetic{task}", "rows": 4000, "passages": 6000, "epochs": 1, "synthetic": True},
    )


def _scaled(unit: Floats, low: float, high: float) -> Floats:
    scaled: Floats = low * (high / low) ** unit
    return scaled


def _runs(configs: int) -> tuple[Integers, Integers, Floats]:
    """One full run each, two more seeds for a tenth, and short runs with their own schedule for a third."""
    rows = [(c, _SEEDS[0], 1.0) for c in range(configs)]
    rows += [(c, seed, 1.0) for c in range(0, configs, 10) for seed in _SEEDS[1:]]
    rows += [(c, _SEEDS[0], budget) for c in range(0, configs, 3) for budget in (1 / 16, 1 / 4)]
    config, seed, budget = (np.array(column) for column in zip(*rows, strict=True))
    return config, seed, budget


def _gains(generator: np.random.Generator, unit: Floats) -> Floats:
    """(C,): what a full training gains in the logarithm of the relevant passage's rank."""
    best = 0.35 + 0.3 * generator.random(4)
    weights = np.array([5.0, 1.2, 0.5, 0.6]) * generator.uniform(0.7, 1.3, 4)
    tilt = 1.5 * (unit[:, 0] - best[0]) * (unit[:, 3] - best[3])  # large batches take larger rates
    gains: Floats = 0.7 - ((unit - best) ** 2) @ weights + tilt
    return gains


def _curves(rate: Floats, gains: Floats, budget: Floats) -> Floats:
    """(R, F): gains at the fractions; NaN beyond a run's budget."""
    fractions = np.array(FRACTIONS)
    part = np.minimum(1.0, fractions / budget[:, None])
    pace = 12.0 * rate[:, None] + 2.0
    risen = (1 - np.exp(-pace * fractions)) / (1 - np.exp(-pace))
    unsettled = 0.35 * rate[:, None] * np.sin(np.pi * part)
    return np.where(fractions <= budget[:, None], gains[:, None] * risen - unsettled, np.nan)


def _scores(generator: np.random.Generator, curves: Floats, queries: dict[str, int]) -> dict[str, Floats]:
    """nDCG@10 of one relevant passage a query, whose rank falls with the gain."""
    scores: dict[str, Floats] = {}
    for split, count in queries.items():
        hardness = generator.normal(1.1, 1.4, count)
        luck = generator.normal(0, 0.45, (len(curves), 1, count)) + generator.normal(0, 0.2, (*curves.shape, count))
        scores[split] = _ndcg(hardness - curves[..., None] - luck)
        scores[f"base_{split}"] = _ndcg(hardness)
    return scores


def _ndcg(log_rank: Floats) -> Floats:
    rank = np.maximum(1, np.ceil(np.exp(log_rank)))
    value = np.where(rank <= 10, 1 / np.log2(1 + rank), 0.0)
    return np.where(np.isnan(log_rank), np.nan, value).astype(np.float16)
