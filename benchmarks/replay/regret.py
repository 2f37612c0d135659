"""Regret over compute, of many replays: means, their bootstrap intervals, and the compute that reaches a level."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import optuna

from benchmarks.recorded_table import Floats
from benchmarks.replay.peers import PEERS, replay_peer
from benchmarks.replay.strategies import OURS, SLOW
from benchmarks.replay.tasks import ReplayTask
from tuner.verdict.statistics import bootstrap_interval

RANDOM_TRIALS = 60
SHARES = np.geomspace(1 / 64, 1.0, 97)
"""Compute, as shares of that of 60 random full trials."""
WANTED = 1 / 8
"""Share at which a search is to be as good as they are."""
_CHUNK = 10
OURS_MOST = 0.3
"""Share of it up to which our own strategies are replayed: beyond, the table is nearly exhausted."""


@dataclass(frozen=True, kw_only=True)
class Regret:
    """Of one strategy on one task."""

    dev: Floats
    """(replays, shares): the best of the table less the best found."""
    test: Floats
    """The same, of what was best on dev."""

    def mean(self) -> Floats:
        """(shares,): on dev."""
        means: Floats = self.dev.mean(axis=0)
        return means

    def at(self, share: float, split: str = "dev") -> tuple[float, tuple[float, float]]:
        """Returns the mean at a share of the compute, and its 95% bootstrap interval over replays."""
        values = np.asarray(getattr(self, split)[:, np.searchsorted(SHARES, share - 1e-9)], dtype=np.float64)
        interval = bootstrap_interval(values, seed=0, resamples=1000)
        return float(values.mean()), interval


def full_cost(task: ReplayTask) -> float:
    """What 60 random full trials cost, in full trainings: each is scored once."""
    return RANDOM_TRIALS * (1 + task.scoring)


def replay_all(
    tasks: Sequence[ReplayTask], names: Sequence[str], *, replays: int, processes: int
) -> dict[tuple[str, str], Regret]:
    """Replays every strategy on every task; returns (task, strategy) -> regret."""
    jobs = [
        (task, name, range(start, min(start + _CHUNK, count)))
        for task in tasks
        for name in names
        for count in (max(2, replays // 20) if name in SLOW else replays,)
        for start in range(0, count, _CHUNK)
    ]
    with ProcessPoolExecutor(processes, initializer=_quiet) as pool:
        parts = list(pool.map(_replays, *zip(*jobs, strict=True)))
    found: dict[tuple[str, str], list[tuple[Floats, Floats]]] = {}
    for (task, name, _), part in zip(jobs, parts, strict=True):
        found.setdefault((task.name, name), []).append(part)
    return {
        key: Regret(dev=np.concatenate([dev for dev, _ in rows]), test=np.concatenate([test for _, test in rows]))
        for key, rows in found.items()
    }


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Of whole searches of one strategy on one task: each (replays,)."""

    share: Floats
    """What they cost, as a share of 60 random full trials."""
    dev: Floats
    """The best of the table less what they ended with."""
    test: Floats


def search_all(
    tasks: Sequence[ReplayTask], names: Sequence[str], trials: Sequence[int], *, replays: int, processes: int
) -> dict[tuple[str, str, int], Ends]:
    """Replays searches with each number of trials to their end; returns (task, strategy, trials) -> what came of it."""
    jobs = [(task, name, count, replays) for task in tasks for name in names for count in trials]
    with ProcessPoolExecutor(processes, initializer=_quiet) as pool:
        ends = pool.map(_searches, *zip(*jobs, strict=True)) if jobs else []
        return {(task.name, name, count): end for (task, name, count, _), end in zip(jobs, ends, strict=True)}


def _searches(task: ReplayTask, name: str, trials: int, replays: int) -> Ends:
    rows = []
    for seed in range(replays):
        trace = OURS[name].search(task, user=_user(task, seed), seed=seed, trials=trials)
        dev, test = trace.regret_at(np.array([trace.cost]))
        rows.append((trace.cost / full_cost(task), dev[0], test[0]))
    share, dev, test = np.array(rows).T
    return Ends(share=share, dev=dev, test=test)


def _user(task: ReplayTask, seed: int) -> int:
    """The user's own settings: any configuration of the table, the same for every strategy."""
    return int(np.random.default_rng([seed, 1]).integers(task.configs))


def _quiet() -> None:
    import logging
    import warnings

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # Optuna's of experimental features, once a study


def _replays(task: ReplayTask, name: str, seeds: Iterable[int]) -> tuple[Floats, Floats]:
    rows = [_replay(task, name, seed) for seed in seeds]
    return np.array([dev for dev, _ in rows]), np.array([test for _, test in rows])


def _replay(task: ReplayTask, name: str, seed: int) -> tuple[Floats, Floats]:
    user = _user(task, seed)
    whole = full_cost(task)
    if name in PEERS:
        most = whole * (OURS_MOST if name in SLOW else 1.0)
        trace = replay_peer(name, task, user=user, seed=seed, most=most)
    else:
        trace = OURS[name].replay(task, user=user, seed=seed, most=whole * OURS_MOST)
    return trace.regret_at(SHARES * whole)


def share_to_reach(curve: Floats, level: float) -> float | None:
    """Returns the least share of the compute at which a mean regret is at `level` or below; None: at none."""
    below = np.flatnonzero(curve <= level + 1e-12)
    return float(SHARES[below[0]]) if len(below) else None


def mean_curve(curves: Iterable[Regret]) -> Floats:
    """(shares,): the mean over tasks of the mean regret on dev."""
    means: Floats = np.mean([regret.mean() for regret in curves], axis=0)
    return means


def chosen_without(task: str, candidates: Sequence[str], regrets: Mapping[tuple[str, str], Regret]) -> str:
    """Returns the candidate with the least regret on the other tasks at the compute that is wanted."""
    others = sorted({other for other, _ in regrets if other != task} or {task})
    scores = {name: sum(regrets[other, name].at(WANTED)[0] for other in others) for name in candidates}
    return min(scores, key=lambda name: scores[name])
