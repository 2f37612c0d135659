"""About how long a search still takes, from the jobs that it has done: trials, then finalists, then the test."""

import math
from collections.abc import Iterator, Sequence

from tuner.request.config import SearchConfig
from tuner.schedule.jobs import FINALIST, Row
from tuner.schedule.time_budget import final_scorings
from tuner.study.trials import BASE, SAMPLED, USER

TRIALS = (BASE, USER, SAMPLED)
"""Roles of the rows that are trials of the search; the others are finalists, and jobs that only score."""
_TRAINED = (USER, SAMPLED, FINALIST)


def time_left(config: SearchConfig, rows: Sequence[Row], now: float, budget: float = math.inf) -> float | None:
    """Returns seconds: what is left of the work of all slots, were it spread over them.

    A trial that is still to come is taken to cost what those that have ended did, the ones that were stopped among
    them; a retraining costs a whole training, and a scoring of test what the base model's on dev did.

    Args:
        config: The search.
        rows: Its jobs so far, each attempt one.
        now: As the rows' clock has it.
        budget: Seconds that are left of the time budget: no more trials are made than leave time for what follows.

    Returns:
        None while no trial has reached a rung, nor taken two steps.
    """
    at_rungs = [row for row in rows if row.role in _TRAINED and row.fraction and row.seconds]
    wholes = [sum(row.seconds.values()) / row.fraction for row in at_rungs] or list(_by_steps(config, rows))
    if not wholes:
        return None
    whole = sum(wholes) / len(wholes)
    search = 0.0 if any(row.role not in TRIALS for row in rows) else _search(config, rows, whole, now)
    after = _retrainings(config, rows, whole, now) + _scorings(config, rows, now)
    return min(search, max(0.0, budget - after)) + after


def _by_steps(config: SearchConfig, rows: Sequence[Row]) -> Iterator[float]:
    """Yields seconds of each whole training that runs, by the steps that it has taken, and its rungs' scoring."""
    scoring = len(config.rungs) * _scoring(rows)
    for row in rows:
        if row.role in _TRAINED and not _has_ended(row) and row.first_step and row.last_step:
            (since, first), (until, last) = row.first_step, row.last_step
            if last > first:
                yield row.steps * (until - since) / (last - first) + scoring


def _search(config: SearchConfig, rows: Sequence[Row], whole: float, now: float) -> float:
    begun = {row.name for row in rows if row.role in TRIALS}
    timed = [row for row in rows if row.role in (USER, SAMPLED) and _has_ended(row) and row.seconds]
    ended = {row.name: sum(row.seconds.values()) for row in timed}
    each = sum(ended.values()) / len(ended) if ended else whole
    running = sum(max(0.0, each - (now - row.started)) for row in rows if row.role in TRIALS and not _has_ended(row))
    return (max(0, config.num_trials - len(begun)) * each + running) / config.concurrent_trials


def _retrainings(config: SearchConfig, rows: Sequence[Row], whole: float, now: float) -> float:
    if any(row.role not in (*TRIALS, FINALIST) for row in rows):
        return 0.0  # what comes after them has begun
    own = [row for row in rows if row.role == FINALIST]
    done = len({row.name for row in own if _has_ended(row)})
    rounds = math.ceil(max(0, config.finalist_count * config.finalist_seeds - done) / config.concurrent_trials)
    running = [now - row.started for row in own if not _has_ended(row)]
    return max(0.0, rounds * whole - min(running, default=0.0))


def _scorings(config: SearchConfig, rows: Sequence[Row], now: float) -> float:
    spent = sum((row.ended or now) - row.started for row in rows if row.role not in (*TRIALS, FINALIST))
    return max(0.0, final_scorings(config) * _scoring(rows) - spent)


def _scoring(rows: Sequence[Row]) -> float:
    """Seconds of scoring the corpus once: the base model's."""
    return max((row.seconds.get("scoring", 0.0) for row in rows if row.role == BASE), default=0.0)


def _has_ended(row: Row) -> bool:
    return row.state != "running"
