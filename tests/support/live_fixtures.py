"""Searches in the middle of their work, as the live page shows them."""

import dataclasses
import datetime
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution

from tuner.report.live import RUNNING, Status, Work
from tuner.report.standings import Standing

NOW = datetime.datetime(2026, 11, 26, 12, 20, 5, tzinfo=datetime.UTC)
HOSTILE = "</script><img src=x onerror=alert(1)>"
_SPACE = {"learning_rate": FloatDistribution(2e-6, 5e-5, log=True), "train_group_size": IntDistribution(2, 16)}


def standing(number: int, state: str, *rungs: float, role: str = "sampled", **others: Any) -> Standing:
    """One trial; a base model has its one score without a rung."""
    params = {} if role == "base" else {"learning_rate": 1e-5 * (1 + number / 10), "train_group_size": 2 + number}
    return Standing(
        number=number,
        role=role,
        state=state,
        value=max(rungs, default=None),
        rungs={} if role == "base" else dict(enumerate(rungs, 1)),
        params=params,
        distributions=_SPACE if params else {},
        seconds=240.0 * max(1, len(rungs)),
        **others,
    )


BASE = standing(0, "complete", 0.6879, role="base")
TRIALS = (
    BASE,
    standing(1, "complete", 0.69, 0.70, 0.7105, 0.7118, role="user"),
    standing(2, "complete", 0.70, 0.712, 0.72, 0.7246),
    standing(3, "pruned", 0.651),
    standing(4, "failed", 0.66, error=f"CUDA out of memory {HOSTILE}"),
    standing(5, "paused", 0.68, 0.699),
    standing(6, "running", 0.702, 0.715),
    standing(7, "waiting"),
)
WORK = Work(name="0006", title="trial 6", doing="rung 2 of 4, step 210 of 400", is_trial=True, seconds=312.0)
SCORING = Work(
    name="0000", title="base model", doing="scoring, 1,024 of 60,000 passages embedded", is_trial=True, seconds=9
)


def status(**others: Any) -> Status:
    """A search in its middle, but for what is given."""
    middle = Status(
        state=RUNNING,
        model="BAAI/bge-m3",
        run_dir="runs/first",
        again="runs/first --trust_remote_code",
        metric="dense.ndcg_at_10",
        rungs=(0.125, 0.25, 0.5, 1.0),
        planned=16,
        trials=TRIALS,
        work=[WORK],
        place="16 CPUs, 1 x NVIDIA H100; one trial at a time, on 1 worker with 8 CPUs and 1 GPU",
        seconds=3744.0,
        seconds_left=7200.0,
        price_per_hour=3.0,
        now=NOW,
        error=(0.0093, 250),
    )
    return dataclasses.replace(middle, **others)


def at_the_base_model() -> Status:
    """Nothing is scored yet."""
    waiting = [standing(0, "running", role="base"), standing(1, "waiting", role="user")]
    return status(trials=waiting, work=[SCORING], seconds=31.0, seconds_left=None, error=None)
