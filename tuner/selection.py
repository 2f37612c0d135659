"""Which trial wins, and whether it is better than the base model at all.

Reads a finished run: the study, the finalists' retrainings and the test scores under trials/. What it returns is what
result.json holds.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from trainables.measures import Scores
from tuner.statistics import Comparison, compare, lower_bound, pooled_spread

FINE_TUNE, KEEP = "fine-tune", "keep the base model"
QUERIES_SHOWN = 10
_SECONDS = ("training", "scoring", "overhead")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A trial among the finalists."""

    trial: int
    """Number in the search."""
    seeds: Mapping[int, float]
    """Training seed -> objective on dev, the search's own seed first."""
    lower: float | None = None
    """One-sided 95% lower bound of the mean, from the deviation pooled over all finalists; None for a single seed."""

    @property
    def mean(self) -> float:
        """Mean objective over the seeds."""
        return float(np.mean(list(self.seeds.values())))


def finalists(study: Study, count: int) -> list[int]:
    """Returns the numbers of the best `count` trained and completed trials, best first."""
    trained = [trial for trial in _complete(study) if trial.user_attrs.get("role") != "base"]
    distinct = [trial for trial in trained if "duplicate_of" not in trial.user_attrs]
    return [trial.number for trial in sorted(distinct, key=_value, reverse=True)[:count]]


def standings(study: Study, retrains: Study | None = None) -> list[Standing]:
    """Ranks the retrained trials by the lower bound of their mean dev score, best first.

    The bound is Student's t with the standard deviation between seeds pooled over the retrained trials: a deviation of
    two or three seeds alone is too noisy to rank by (`statistics.lower_bound`). Trials without a retraining follow, by
    their dev score: all of them where finalists were not asked for.
    """
    numbers = finalists(study, len(study.get_trials(deepcopy=False)))
    seeds = _seeds(study, numbers, retrains)
    spread = pooled_spread([list(values.values()) for values in seeds.values()])
    bounds = {
        number: lower_bound(list(values.values()), spread) if spread and len(values) > 1 else None
        for number, values in seeds.items()
    }
    ranked = [Standing(trial=number, seeds=values, lower=bounds[number]) for number, values in seeds.items()]
    return sorted(ranked, key=lambda s: (s.lower is not None, s.mean if s.lower is None else s.lower), reverse=True)


def winner(study: Study, retrains: Study | None = None) -> int | None:
    """Returns the number of the winning trial; None when no trained trial completed."""
    ranked = standings(study, retrains)
    return ranked[0].trial if ranked else None


def noise(ranked: Sequence[Standing]) -> float | None:
    """Returns the standard deviation between seeds of one trial, pooled over trials; None without retrainings."""
    spread = pooled_spread([list(standing.seeds.values()) for standing in ranked])
    return None if spread is None else spread.deviation


def ties(ranked: Sequence[Standing]) -> list[int]:
    """Returns the trials that the winner `ranked[0]` cannot be told from: means closer than the noise between seeds."""
    level = noise(ranked) or 0.0
    rivals = [standing for standing in ranked[1:] if len(standing.seeds) == len(ranked[0].seeds)]
    return [rival.trial for rival in rivals if abs(rival.mean - ranked[0].mean) <= level]


def judge(
    run_dir: Path, study: Study, retrains: Study | None = None, *, metric: str, seed: int, total_seconds: float
) -> dict[str, Any]:
    """Builds what result.json holds.

    Args:
        run_dir: Holds trials/NNNN/test.json of the base model (0000), of the user's settings and of the winner,
            data/eval/queries.jsonl and, where guard tasks were scored, guard.json.
        study: The search.
        retrains: The finalists' retrainings, if any.
        metric: The objective, as ``dense.ndcg_at_10``.
        seed: Seed of the resampling.
        total_seconds: Wall clock of the whole search.

    Returns:
        The stable keys of result.json, and beside them guard, noise, ties and finalists; with a trained trial also
        gains (by metric), versus_user, optimism (its dev minus its test score) and queries (gained and lost most).

    Raises:
        ValueError: If the base model or the winner was not scored on test.
    """
    ranked = standings(study, retrains)
    base, user = (_model_of(run_dir, study, role, metric) for role in ("base", "user"))
    result: dict[str, Any] = {
        "metric": metric,
        "verdict": KEEP,
        "reason": "No trial was trained to its end.",
        "base": base,
        "user": user,
        "best": None,
        "trials": _counts(study),
        "seconds": _seconds([study, retrains], total_seconds),
        "guard": read_guard(run_dir),
        "noise": noise(ranked),
        "ties": ties(ranked),
        "finalists": [{"trial": s.trial} | _over_seeds(s) for s in ranked if s.lower is not None],
    }
    if not ranked:
        return result
    before, after = _test_scores(run_dir, 0), _test_scores(run_dir, ranked[0].trial)
    gains = {name: compare(values, after.per_query[name], seed=seed) for name, values in before.per_query.items()}
    verdict, reason = decide(gains[metric], result["guard"])
    best = _model(run_dir, study.get_trials(deepcopy=False)[ranked[0].trial], metric)
    return result | {
        "verdict": verdict,
        "reason": reason,
        "best": best | _as_dict(gains[metric]) | _over_seeds(ranked[0]),
        "gains": {name: _as_dict(gain) for name, gain in gains.items()},
        "versus_user": _versus_user(run_dir, user, best["trial"], metric, seed),
        "optimism": best["dev"] - best["test"],
        "queries": _moved_queries(run_dir / "data" / "eval", before, after, metric),
    }


def decide(gain: Comparison, guard: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """Returns the verdict and its reason in a sentence or two.

    "fine-tune" is said only when the whole 95% interval of the gain on test lies above 0 and no guard task loses more
    than its tolerance.
    """
    low, high = gain.ci95
    measured = f"{gain.gain:+.4f} on {gain.queries} test queries (95% interval {low:+.4f} to {high:+.4f})"
    if guard is not None and guard["lost"]:
        lost = ", ".join(guard["lost"])
        return KEEP, f"Guard tasks lose more than {guard['tolerance']:g}: {lost}. The gain is {measured}."
    if low > 0:
        return FINE_TUNE, f"The gain is {measured}."
    if high < 0:
        return KEEP, f"The best trial is worse than the base model: {measured}."
    if gain.win_tie_loss[1] == gain.queries:
        return KEEP, f"The best trial and the base model score the same on each of the {gain.queries} test queries."
    return KEEP, (
        f"The gain cannot be told from chance: {measured}. "
        f"A test set of this size detects gains of about {gain.detectable:.4f} and more."
    )


def read_guard(run_dir: Path) -> dict[str, Any] | None:
    """Returns guard.json with the names of the tasks `lost` beyond the tolerance; None where no guard was asked for."""
    path = run_dir / "guard.json"
    if not path.exists():
        return None
    guard: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    tolerance = guard["tolerance"]
    lost = [name for name, scores in guard["tasks"].items() if scores["base"] - scores["best"] > tolerance]
    return guard | {"lost": lost}


def _complete(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None, "a complete trial of one objective has a value"
    return trial.value


def _seeds(study: Study, numbers: Sequence[int], retrains: Study | None) -> dict[int, dict[int, float]]:
    """Trial -> training seed -> objective on dev."""
    trials = study.get_trials(deepcopy=False)
    seeds = {number: {trials[number].user_attrs["seed"]: _value(trials[number])} for number in numbers}
    for again in _complete(retrains) if retrains else ():
        if (source := again.user_attrs["source"]) in seeds:
            seeds[source][again.user_attrs["seed"]] = _value(again)
    return seeds


def _counts(study: Study) -> dict[str, int]:
    states = Counter(trial.state for trial in study.get_trials(deepcopy=False))
    names = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    return {name: states[state] for name, state in names.items()}


def _seconds(studies: Sequence[Study | None], total: float) -> dict[str, float]:
    spent = [t.user_attrs.get("seconds", {}) for study in studies if study for t in study.get_trials(deepcopy=False)]
    return {"total": total} | {name: sum(seconds.get(name, 0.0) for seconds in spent) for name in _SECONDS}


def _test_file(run_dir: Path, number: int) -> Path:
    return run_dir / "trials" / f"{number:04d}" / "test.json"


def _test_scores(run_dir: Path, number: int) -> Scores:
    path = _test_file(run_dir, number)
    if not path.exists():
        raise ValueError(
            f"Trial {number} must be scored on test, but {path} does not exist: take the search up again with --resume."
        )
    return Scores.from_json(path.read_text(encoding="utf-8"))


def _model(run_dir: Path, trial: FrozenTrial, metric: str) -> dict[str, Any]:
    dev = trial.user_attrs.get("scores", {})
    tested = _test_file(run_dir, trial.number).exists()
    test = _test_scores(run_dir, trial.number).means if tested else {}
    return {
        "trial": trial.number,
        "params": trial.params,
        "dev": dev.get(metric),
        "test": test.get(metric),
        "dev_all": dev,
        "test_all": test,
    }


def _model_of(run_dir: Path, study: Study, role: str, metric: str) -> dict[str, Any] | None:
    trials = (trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("role") == role)
    return next((_model(run_dir, trial, metric) for trial in trials), None)


def _over_seeds(standing: Standing) -> dict[str, Any]:
    seeds = [{"seed": seed, "dev": dev} for seed, dev in standing.seeds.items()]
    return {"dev_mean": standing.mean, "dev_lower": standing.lower, "seeds": seeds}


def _versus_user(
    run_dir: Path, user: Mapping[str, Any] | None, number: int, metric: str, seed: int
) -> dict[str, Any] | None:
    """The winner against the user's own settings; None where they are one, or the user's did not reach the test."""
    if user is None or user["test"] is None or user["trial"] == number:
        return None
    before, after = (_test_scores(run_dir, trial).per_query[metric] for trial in (user["trial"], number))
    return _as_dict(compare(before, after, seed=seed))


def _as_dict(comparison: Comparison) -> dict[str, Any]:
    counts = dict(zip(("win", "tie", "loss"), comparison.win_tie_loss, strict=True))
    return dataclasses.asdict(comparison) | {"ci95": list(comparison.ci95), "win_tie_loss": counts}


def _moved_queries(eval_data: Path, before: Scores, after: Scores, metric: str) -> dict[str, list[dict[str, Any]]]:
    """The queries that gained and lost most, with what the dense head retrieved before and after."""
    old, new = before.per_query[metric], after.per_query[metric]
    gains = {query: new[query] - old[query] for query in old}
    ordered = sorted(gains, key=lambda query: gains[query])
    gained = [query for query in reversed(ordered[-QUERIES_SHOWN:]) if gains[query] > 0]
    lost = [query for query in ordered[:QUERIES_SHOWN] if gains[query] < 0]
    texts = _query_texts(eval_data, {*gained, *lost})

    def row(query: str) -> dict[str, Any]:
        return {
            "id": query,
            "text": texts[query],
            "before": old[query],
            "after": new[query],
            "retrieved_before": before.retrieved[query],
            "retrieved_after": after.retrieved[query],
        }

    return {"gained": [row(query) for query in gained], "lost": [row(query) for query in lost]}


def _query_texts(eval_data: Path, wanted: Set[str]) -> dict[str, str]:
    with (eval_data / "queries.jsonl").open(encoding="utf-8") as lines:
        queries = (json.loads(line) for line in lines if line.strip())
        return {query["_id"]: query["text"] for query in queries if query["_id"] in wanted}
