"""What is replayed: today's default, what it was before, and every option alone and together."""

from dataclasses import dataclass

from benchmarks.replay.ours import replay_ours
from benchmarks.replay.tasks import ReplayTask, Trace
from tuner.request.config import SearchConfig
from tuner.study.strategy import Strategy, strategy_of


@dataclass(frozen=True, kw_only=True)
class Ours:
    """One way to search with the product."""

    strategy: Strategy
    rungs: tuple[float, ...] = (1 / 16, 1 / 4, 1.0)
    ordinal: bool = True
    """Sizes are integers on a log scale; else categories."""

    def replay(self, task: ReplayTask, *, user: int, seed: int, most: float) -> Trace:
        """Searches `task`; arguments as for `replay_ours`."""
        ladder = {"rungs": self.rungs, "ordinal": self.ordinal}
        return replay_ours(task, self.strategy, **ladder, user=user, seed=seed, most=most)  # type: ignore[arg-type]


BEFORE = Ours(
    strategy=Strategy(
        sampler="tpe", pruner="successive_halving", reduction_factor=2, startup_share=1 / 3, startup_most=10,
        user_competes=False, prior=False, exploit=0.0, extrapolate=False,
    ),
    rungs=(1 / 4, 1 / 2, 1.0),
    ordinal=False,
)  # fmt: skip
_EIGHTH = (1 / 8, 1 / 2, 1.0)
_FINE = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
_PLAIN = {"user_competes": False, "prior": False, "exploit": 0.0, "extrapolate": False, "pruner": "successive_halving"}


def _ours(*, rungs: tuple[float, ...] = (1 / 16, 1 / 4, 1.0), ordinal: bool = True, **options: object) -> Ours:
    known = {**_PLAIN, "reduction_factor": 4, **options}
    return Ours(strategy=Strategy(**known), rungs=rungs, ordinal=ordinal)  # type: ignore[arg-type]


OURS: dict[str, Ours] = {
    "default": Ours(strategy=strategy_of(SearchConfig()), rungs=SearchConfig().rungs),
    "before": BEFORE,
    "before+ordinal": Ours(strategy=BEFORE.strategy, rungs=BEFORE.rungs),
    "ladder": _ours(ordinal=False),
    "ladder+ordinal": _ours(),
    "ladder8": _ours(rungs=_EIGHTH),
    "ladder3": _ours(reduction_factor=3),
    "fine2": _ours(rungs=_FINE, reduction_factor=2),
    "one_rung": _ours(rungs=(1 / 8, 1.0), reduction_factor=8),
    "user_competes": _ours(user_competes=True),
    "few_startup": _ours(startup_most=5),
    "prior": _ours(prior=True),
    "exploit": _ours(exploit=0.25),
    "extrapolate": _ours(extrapolate=True),
    "paired": _ours(pruner="paired"),
    "paired_fine": _ours(pruner="paired", rungs=_FINE),
    "halving_paired": _ours(pruner="halving_paired"),
    "gp": _ours(sampler="gp", extrapolate=True),
    "random_ladder": _ours(sampler="random"),
    "together": _ours(user_competes=True, prior=True, exploit=0.25, extrapolate=True, startup_most=5),
}
SLOW = ("gp", "gp_full")
"""Replays of these take seconds each: a tenth of them are made."""
