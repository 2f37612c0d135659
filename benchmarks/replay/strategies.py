"""What is replayed: today's default, what it was before, and every option alone and together."""

from dataclasses import dataclass
from typing import Any

from benchmarks.replay.ours import replay_ours
from benchmarks.replay.tasks import CATEGORIES, LINEAR, LOG, ReplayTask, Trace
from tuner.request.config import SearchConfig
from tuner.study.strategy import Strategy, strategy_of


@dataclass(frozen=True, kw_only=True)
class Ours:
    """One way to search with the product."""

    strategy: Strategy
    rungs: tuple[float, ...]
    sizes: str
    """How group and batch are suggested."""

    def replay(self, task: ReplayTask, *, user: int, seed: int, most: float) -> Trace:
        """Searches `task`; arguments as for `replay_ours`."""
        return replay_ours(task, self.strategy, rungs=self.rungs, sizes=self.sizes, user=user, seed=seed, most=most)

    def search(self, task: ReplayTask, *, user: int, seed: int, trials: int) -> Trace:
        """Searches `task` with so many trials, to the search's own end."""
        return replay_ours(task, self.strategy, rungs=self.rungs, sizes=self.sizes, user=user, seed=seed, trials=trials)


_PLAIN: dict[str, Any] = {
    "sampler": "tpe",
    "prior": False,
    "exploit": 0.0,
    "extrapolate": False,
}
_HALVES = (1 / 8, 1 / 4, 1 / 2, 1.0)
_QUARTERS = (1 / 16, 1 / 4, 1.0)
_BEFORE = (1 / 4, 1 / 2, 1.0)


def _ours(
    pruner: str = "promotion",
    factor: int = 2,
    rungs: tuple[float, ...] = _HALVES,
    sizes: str = LINEAR,
    **options: Any,
) -> Ours:
    known = {**_PLAIN, "pruner": pruner, "reduction_factor": factor, **options}
    return Ours(strategy=Strategy(**known), rungs=rungs, sizes=sizes)


_HALVING = "successive_halving"
_ALL: dict[str, Any] = {"prior": True, "exploit": 0.3, "extrapolate": True}
OURS: dict[str, Ours] = {
    "default": Ours(strategy=strategy_of(SearchConfig()), rungs=SearchConfig().rungs, sizes=LINEAR),
    "before": _ours(_HALVING, rungs=_BEFORE, sizes=CATEGORIES),
    "before+log": _ours(_HALVING, rungs=_BEFORE, sizes=LOG),
    "before+linear": _ours(_HALVING, rungs=_BEFORE),
    "before+priors": _ours(_HALVING, rungs=_BEFORE, **_ALL),
    "quarters": _ours(_HALVING, 4, _QUARTERS),
    "quarters+promotion": _ours("promotion", 4, _QUARTERS),
    "quarters+priors": _ours("promotion", 4, _QUARTERS, **_ALL),
    "halving": _ours(_HALVING),
    "promotion": _ours(),
    "promotion+log": _ours(sizes=LOG),
    "promotion3": _ours("promotion", 3, (1 / 8, 1 / 2, 1.0)),
    "prior": _ours(prior=True),
    "exploit": _ours(exploit=0.3),
    "extrapolate": _ours(extrapolate=True),
    "few_startup": _ours(startup_most=6, **_ALL),
    "one_rung_promotion": _ours("promotion", 8, (1 / 8, 1.0)),
    "gp": _ours(sampler="gp", **_ALL),
    "random_promotion": _ours(sampler="random"),
}
CANDIDATES = ("default", "promotion", "prior", "before+linear", "quarters+priors")
"""Replayed where no strategy is named."""
SLOW = ("gp", "gp_full")
"""Replays of these take seconds each: a twentieth of them are made."""
