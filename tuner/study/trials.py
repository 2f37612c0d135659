"""A trial of the study: its user attributes that more than one module reads, and what follows from them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, Trial, TrialState

ROLE = "role"
BASE, USER, SAMPLED = "base", "user", "sampled"
"""Roles: the base model, the user's own settings, a suggestion."""
ARGUMENTS = "arguments"
"""What a trial trains with, where a space returns other arguments than Optuna's parameters."""
INFEASIBLE = "infeasible"
"""The trial fits the device in no way, or diverged."""
GUARD_EXCESS = "guard_excess"
"""How much more it lost on a guard than it may; below 0 where it did not."""
QUERIES = "queries"
"""With the number of a rung: the objective of each dev query there, packed."""
SCORES = "scores"
"""Name of a score -> mean over dev, at its best rung."""
BEST_VALUE, BEST_RUNG = "best_value", "best_rung"
"""The objective at its best rung, and that rung's number."""
RUNG = "rung"
"""With the number of a rung: the value there, where Optuna takes none because there are two objectives."""
SECONDS = "seconds"
"""Part -> what it took; of the study: what all of its processes took together."""
EXAMPLES = "examples"
"""Training rows seen."""
GUARD_SCORES = "guard"
"""Guard task -> main score."""
DUPLICATE_OF = "duplicate_of"
"""The number of an earlier trial of the same arguments, whose end it was told."""
RETRIES = "retries"
"""Why each attempt at it ended that was not its last."""
ERROR_KIND, ERROR = "error_kind", "error"
"""Why it failed: the kind of failure, and its message."""
SOURCE, SEED = "source", "seed"
"""Of a retraining: the number of the trial that is trained again, and its seed."""

POOL = "candidate_pool"
"""Of the study: the pool of passages that rungs are scored on, as `RungReport.pool` has it. Every value of a trial,
the base model's too, is on it."""
WHOLE_CORPUS = "whole_corpus"
"""Of the study: for trials that were scored on the whole corpus all the same, number -> ``value`` and ``scores``."""
SESSIONS = "sessions"
"""Of the study: when each process of the search began, on which machines, and with which versions of packages."""
PAUSED = "paused_at"
"""The rung at which a trial waits to be promoted; 0 once it is taken up again."""
PAUSED_SINCE = "paused_since"
"""When it was told so: local time, ISO 8601."""
PROMOTED = "promoted_at"
"""The rung up to which it was told to go on."""


def is_paused(trial: FrozenTrial) -> bool:
    """Whether the trial stands at a rung and may be promoted: to Optuna it is running."""
    return trial.state == TrialState.RUNNING and trial.user_attrs.get(PAUSED, 0) > 0


def queries_at(trial: FrozenTrial, rung: int) -> str:
    """Returns the objective of each dev query at `rung`, packed; empty where it was not kept."""
    return str(trial.user_attrs.get(f"{QUERIES}_{rung}", ""))


def rung_values(trial: FrozenTrial) -> dict[int, float]:
    """Returns rung, from 1 -> the objective there: of two objectives their mean, which Optuna takes no report of."""
    prefix = f"{RUNG}_"
    told = {
        int(name.removeprefix(prefix)): value for name, value in trial.user_attrs.items() if name.startswith(prefix)
    }
    return dict(trial.intermediate_values) or told


def role_of(trial: Trial | FrozenTrial) -> str:
    """Returns ``base``, ``user`` or ``sampled``."""
    return str(trial.user_attrs.get(ROLE, SAMPLED))


def has_failed(trial: FrozenTrial) -> bool:
    """Whether the trial could not be trained: it raised, or the sampler is told of it as a violated constraint."""
    return trial.state == TrialState.FAIL or bool(trial.user_attrs.get(INFEASIBLE))


def state_of(trial: FrozenTrial) -> str:
    """Returns ``complete``, ``pruned``, ``paused``, ``running``, ``waiting`` or ``failed``."""
    if has_failed(trial):
        return "failed"
    return "paused" if is_paused(trial) else trial.state.name.lower()


def how_they_ended(trials: Iterable[FrozenTrial]) -> str:
    """Returns how many were trained to their end, stopped, or failed, the base model left out, in words.

    While the search is not over, some may be paused; when it is, those that are were stopped there.
    One that was told the end of an earlier trial was not trained: it is counted with such alone, unless that failed.
    """
    made = [trial for trial in trials if role_of(trial) != BASE]
    ends = Counter((state_of(trial), DUPLICATE_OF in trial.user_attrs) for trial in made)
    failed = sum(map(has_failed, made))
    paused = f", {ends['paused', False]} paused" if ends["paused", False] else ""
    said = (
        f"{ends['complete', False]} trained to the end, {ends['pruned', False]} stopped early{paused}, {failed} failed"
    )
    repeated = ends["complete", True] + ends["pruned", True]
    return said + (f", {repeated} not trained again (settings of earlier trials)" if repeated else "")


def value_of(trial: FrozenTrial) -> float:
    """Returns the one value that ranks a complete trial: its objective, or the mean of several."""
    return float(trial.values[0] if len(trial.values) == 1 else trial.user_attrs[BEST_VALUE])


def whole_corpus(study: Study) -> dict[int, Mapping[str, Any]]:
    """Returns ``value`` and ``scores`` of the trials that were scored on the whole corpus beside the pool."""
    return {int(number): scored for number, scored in study.user_attrs.get(WHOLE_CORPUS, {}).items()}


def dev_scores(study: Study, trial: FrozenTrial) -> dict[str, float]:
    """Returns metric -> mean on dev: on the whole corpus where the trial was scored on it, else on the pool."""
    scored = whole_corpus(study).get(trial.number)
    return dict(scored["scores"] if scored else trial.user_attrs.get(SCORES, {}))


def arguments_of(trial: FrozenTrial) -> dict[str, Any]:
    """Returns what `trial` varies, as its space returned it."""
    return dict(trial.user_attrs.get(ARGUMENTS, trial.params))


def explain(trial: Trial, kind: str, message: str) -> None:
    """Writes down why `trial`, or a retraining, could not be trained."""
    trial.set_user_attr(ERROR_KIND, kind)
    trial.set_user_attr(ERROR, message[:4000])


def retried(trial: Trial, kind: str, message: str) -> None:
    """Writes down that an attempt at `trial`, or at a retraining, did not end, and that it is taken up again."""
    trial.set_user_attr(RETRIES, [*trial.user_attrs.get(RETRIES, []), f"{kind}: {message[:1000]}"])
