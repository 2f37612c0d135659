"""Replays what one would take instead, each by its own library's decisions where it has one."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.pruners import HyperbandPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.schedulers.async_hyperband import _Bracket
from ray.tune.schedulers.trial_scheduler import TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.replay.ours import snap
from benchmarks.replay.tasks import Exhausted, ReplayTask, Trace

_UNITS = 16
"""Resource of a full training, in Optuna's and Ray's counting: the first of the table's fractions is 1."""


class _Replay:
    """One search: the user's own settings first, then what the peer suggests, each configuration once."""

    def __init__(self, task: ReplayTask, *, user: int, seed: int, most: float) -> None:
        self.task, self.user, self.seed, self.most = task, user, seed, most
        self.trace, self.taken = Trace(task=task), set[int]()
        self.space = task.distributions()

    def take(self, trial: optuna.Trial) -> int:
        """The untaken configuration nearest to what `trial` has asked for."""
        config = self.task.nearest(trial.params, self.taken)
        self.taken.add(config)
        snap(trial, self.task.arguments(config), self.space)
        return config

    def column(self, units: int) -> int:
        """The column of the table's fraction of `units` sixteenths."""
        return int(np.argmin(np.abs(self.task.fractions - units / _UNITS)))

    def climb(self, config: int, ladder: Sequence[int], stops: Callable[[int, float], bool]) -> tuple[float, bool]:
        """Trains `config` up the `ladder`; returns its value, and whether it came to the end."""
        before, value = 0, 0.0
        for units in ladder:
            self.trace.spend((units - before) / _UNITS)
            before = units
            value = float(np.nan_to_num(self.task.dev[config, self.column(units)]))
            if stops(units, value) and units < _UNITS:
                return value, False
        return self.trace.complete(config, [self.column(units) for units in ladder]), True

    @property
    def goes_on(self) -> bool:
        """Whether money is left."""
        return self.trace.cost < self.most and len(self.taken) < self.task.configs


def _optuna(replay: _Replay, sampler: BaseSampler, ladder: Sequence[int], pruner: optuna.pruners.BasePruner) -> Trace:
    study = optuna.create_study(sampler=sampler, pruner=pruner, direction="maximize")
    study.enqueue_trial(replay.task.arguments(replay.user))
    while replay.goes_on:
        trial = study.ask(replay.space)
        config = replay.take(trial)

        def stops(units: int, value: float, trial: optuna.Trial = trial) -> bool:
            if len(ladder) == 1:
                return False
            trial.report(value, units)
            return trial.should_prune()

        value, ended = replay.climb(config, ladder, stops)
        study.tell(trial, value if ended else None, state=TrialState.COMPLETE if ended else TrialState.PRUNED)
    return replay.trace


def random_full(replay: _Replay) -> Trace:
    """Random search, every trial to its end."""
    return _optuna(replay, RandomSampler(seed=replay.seed), [_UNITS], optuna.pruners.NopPruner())


def tpe_full(replay: _Replay) -> Trace:
    """Optuna's TPE as it comes, every trial to its end."""
    return _optuna(replay, TPESampler(seed=replay.seed), [_UNITS], optuna.pruners.NopPruner())


def gp_full(replay: _Replay) -> Trace:
    """Optuna's Gaussian process as it comes, every trial to its end."""
    return _optuna(replay, GPSampler(seed=replay.seed), [_UNITS], optuna.pruners.NopPruner())


def hyperband(replay: _Replay) -> Trace:
    """Optuna's TPE and Hyperband, reduction factor 4 (16 sixteenths allow 3 brackets)."""
    pruner = HyperbandPruner(min_resource=1, max_resource=_UNITS, reduction_factor=4)
    return _optuna(replay, TPESampler(seed=replay.seed), [1, 4, _UNITS], pruner)


def ray_asha(replay: _Replay) -> Trace:
    """Ray's OptunaSearch and ASHAScheduler (its bracket, reduction factor 4), one trial at a time."""
    bracket = _Bracket(1, _UNITS, 4, 0)
    own = replay.task.arguments(replay.user)
    search = OptunaSearch(space=replay.space, metric="dev", mode="max", points_to_evaluate=[own], seed=replay.seed)
    while replay.goes_on:
        name = f"{len(replay.taken):04d}"
        search.suggest(name)
        config = replay.take(search._ot_trials[name])
        reported: dict[str, float] = {}

        def stops(units: int, value: float, name: str = name, reported: dict[str, float] = reported) -> bool:
            reported |= {"dev": value, "training_iteration": units}
            search.on_trial_result(name, reported)
            trial: Any = SimpleNamespace(trial_id=name)  # all that a bracket asks of it
            return bool(bracket.on_result(trial, units, value) == TrialScheduler.STOP)

        replay.climb(config, [1, 4, _UNITS], stops)
        search.on_trial_complete(name, reported)
    return replay.trace


def one_rung(replay: _Replay) -> Trace:
    """Random trials, scored once at an eighth; one of eight goes on (Egele et al. 2023, arXiv 2307.15422)."""
    random = np.random.default_rng(replay.seed)
    order = [replay.user, *(int(c) for c in random.permutation(replay.task.configs) if c != replay.user)]
    eighth = replay.column(2)
    for start in range(0, len(order), 8):
        batch = order[start : start + 8]
        for _ in batch:
            replay.trace.spend(2 / _UNITS)
        best = batch[int(np.argmax(np.nan_to_num(replay.task.dev[batch, eighth])))]
        replay.trace.spend(1 - 2 / _UNITS)
        replay.trace.complete(best, [eighth, replay.column(_UNITS)])
        if replay.trace.cost >= replay.most:
            break
    return replay.trace


PEERS: dict[str, Callable[[_Replay], Trace]] = {
    "random": random_full,
    "tpe_full": tpe_full,
    "ray_asha": ray_asha,
    "one_rung": one_rung,
    "hyperband": hyperband,
    "gp_full": gp_full,
}


def replay_peer(name: str, task: ReplayTask, *, user: int, seed: int, most: float) -> Trace:
    """Searches `task` as the peer `name` would; arguments as for `replay_ours`."""
    replay = _Replay(task, user=user, seed=seed, most=most)
    try:
        return PEERS[name](replay)
    except Exhausted:
        return replay.trace
