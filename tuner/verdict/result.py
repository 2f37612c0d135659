"""Whether the winner is better than the base model at all: what result.json holds.

Reads a finished run: the study, the finalists' retrainings and the scores under trials/.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from trainables.config import TrialConfig
from trainables.scoring.measures import Scores
from tuner.run_dir.names import mixture_name, task_name
from tuner.study import guards
from tuner.study.guards import Mixture
from tuner.study.study import SearchStudy, arguments_of, has_failed
from tuner.verdict.selection import Standing, chosen_mixture, mixtures, noise, standings, ties, winner
from tuner.verdict.statistics import Comparison, compare
from tuner.verdict.time_spent import time_spent

FINE_TUNE, KEEP = "fine-tune", "keep the base model"
SIGNIFICANT = 0.05
"""p-value up to which a gain is not put down to chance."""
QUERIES_SHOWN = 10


def judge(
    run_dir: Path,
    study: Study,
    retrains: Study | None = None,
    *,
    metric: str,
    seed: int,
    total_seconds: float,
    guard: Sequence[str] = (),
    tolerance: float = 0.0,
) -> dict[str, Any]:
    """Builds what result.json holds.

    Args:
        run_dir: Holds trials/NNNN/test.json of the base model (0000), of the user's settings and of the winner,
            data/eval/queries.jsonl and, where guard tasks were scored, trials/NNNN/guard.json.
        study: The search.
        retrains: The finalists' retrainings, if any.
        metric: The objective, as ``dense.ndcg_at_10``.
        seed: Seed of the resampling.
        total_seconds: Wall clock of the whole search.
        guard: Names of the guard tasks that were asked for.
        tolerance: What a guard task may lose.

    Returns:
        The stable keys of result.json, and beside them guard, noise, ties, finalists and, with several objectives,
        front; with a trained trial also gains (by metric), objectives (the gain in each of several), versus_user,
        optimism (its dev minus its test score), mixtures, hybrid_weights and queries (gained and lost most).

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
        "seconds": time_spent(run_dir, [study, retrains], total_seconds),
        "guard": None,
        "noise": noise(ranked),
        "ties": [],
        "finalists": [{"trial": s.trial} | _over_seeds(s) for s in ranked if s.lower is not None],
        "front": _front(study, metric),
    }
    number = winner(study, retrains, run_dir=run_dir, tolerance=tolerance)
    if number is None:
        return result
    mixed = chosen_mixture(run_dir, study, number, metric, tolerance)
    best = _model(run_dir, study.get_trials(deepcopy=False)[number], metric, mixed)
    folder = _folder(number, mixed)
    before, after = _test_scores(run_dir, "0000"), _test_scores(run_dir, folder)
    gains = {name: compare(values, after.per_query[name], seed=seed) for name, values in before.per_query.items()}
    guarded = _guard(run_dir, folder, [s.trial for s in ranked], guard, tolerance)
    parts = {
        part: compare(*(scores.with_metric(part).per_query[part] for scores in (before, after)), seed=seed)
        for part in (metric.split(",") if "," in metric else ())
    }
    verdict, reason = decide(gains[metric], guarded, parts)
    standing = next(standing for standing in ranked if standing.trial == number)
    return result | {
        "verdict": verdict,
        "reason": reason,
        "best": best | _as_dict(gains[metric]) | _over_seeds(standing),
        "guard": guarded,
        "ties": ties([standing, *(other for other in ranked if other is not standing)]),
        "objectives": {name: _as_dict(part) for name, part in parts.items()} or None,
        "gains": {name: _as_dict(gain) for name, gain in gains.items()},
        "versus_user": _versus_user(run_dir, user, folder, metric, seed),
        "optimism": best["dev"] - best["test"],
        "mixtures": _swept(run_dir, study, number, metric, tolerance),
        "hybrid_weights": _hybrid_weights(run_dir, {"base": base, "user": user, "best": best}),
        "queries": _moved_queries(run_dir / "data" / "eval", before, after, metric),
    }


def rests_on(config: TrialConfig, run_dir: Path, study: SearchStudy, tolerance: float) -> bool:
    """Whether there is no verdict without a job: it scores the base model or the winner on test.

    The user's own settings, where they do not win, are only shown beside those.
    """
    number = winner(study.search, study.finalists, run_dir=run_dir, tolerance=tolerance)
    shown = {_folder(user, None) for user in study.users if user != number}
    return config.split == "test" and config.name not in shown


def decide(
    gain: Comparison, guard: Mapping[str, Any] | None = None, parts: Mapping[str, Comparison] | None = None
) -> tuple[str, str]:
    """Returns the verdict and its reason in a sentence or two.

    "fine-tune" is said only when the whole 95% interval of the gain on test lies above 0, the permutation test agrees,
    and no guard task loses more than its tolerance. The bootstrap alone is too sure where few queries moved: of four
    that all gained, hardly a resample has none. Of several objectives none may be worse for certain.

    Args:
        gain: Of the objective; of several, of their mean.
        guard: As in result.json.
        parts: Several objectives, each by its name.
    """
    low, high = gain.ci95
    measured = f"{gain.gain:+.4f} on {gain.queries} test queries ({_interval(gain)})"
    if parts:
        measured = f"{measured} in the mean of {len(parts)} objectives: {'; '.join(map(_part, parts.items()))}"
    if guard is not None and guard["lost"]:
        return KEEP, f"{_losses(guard)} The gain is {measured}."
    if worse := [name for name, part in (parts or {}).items() if part.ci95[1] < 0]:
        return KEEP, f"The best trial is worse than the base model in {' and '.join(worse)}. The gain is {measured}."
    if low > 0 and gain.p_value <= SIGNIFICANT:
        return FINE_TUNE, f"The gain is {measured}."
    if low > 0:
        return KEEP, f"Too few queries changed to tell the gain from chance: {_changed(gain)}. The gain is {measured}."
    if high < 0:
        return KEEP, f"The best trial is worse than the base model: {measured}."
    if gain.win_tie_loss[1] == gain.queries:
        return KEEP, f"The best trial and the base model score the same on each of the {gain.queries} test queries."
    return KEEP, (
        f"The gain cannot be told from chance: {measured}. "
        f"A test set of this size detects gains of about {gain.detectable:.4f} and more."
    )


def metric_label(metric: str) -> str:
    """Returns what a value of the objective is called: of several objectives it is their mean."""
    return f"mean of {' and '.join(metric.split(','))}" if "," in metric else metric


def modes(weights: Mapping[str, float]) -> str:
    """Returns weights of the hybrid score as FlagEmbedding's ``compute_score`` takes them."""
    return f"weights_for_different_modes=[{', '.join(f'{weights[head]:g}' for head in ('dense', 'sparse', 'colbert'))}]"


def _changed(gain: Comparison) -> str:
    win, _, loss = gain.win_tie_loss
    return f"{win} better and {loss} worse of {gain.queries}, p = {gain.p_value:.4f}"


def _interval(gain: Comparison) -> str:
    low, high = gain.ci95
    return f"95% interval {low:+.4f} to {high:+.4f}"


def _part(named: tuple[str, Comparison]) -> str:
    name, gain = named
    return f"{name} {gain.gain:+.4f} ({_interval(gain)})"


def _losses(guard: Mapping[str, Any]) -> str:
    """A sentence on what was lost, and another on what could not be scored, where there is any."""
    tasks = {task: guard["tasks"][task] for task in guard["lost"]}
    unscored = [task for task, scores in tasks.items() if None in scores.values()]
    lost = [f"{task} ({s['base']:.4f} to {s['best']:.4f})" for task, s in tasks.items() if task not in unscored]
    sentences = [f"Guard tasks lose more than {guard['tolerance']:g}: {', '.join(lost)}."] if lost else []
    if unscored:
        sentences.append(f"Guard tasks could not be scored, and may have lost anything: {', '.join(unscored)}.")
    return " ".join(sentences)


def _guard(
    run_dir: Path, folder: str, ranked: Sequence[int], asked: Sequence[str], tolerance: float
) -> dict[str, Any] | None:
    """Guard tasks of base model and winner; None where none was asked for. What was not scored counts as lost."""
    if not asked:
        return None
    names = [task_name(guard) for guard in asked]
    base, best = (guards.read_scores(run_dir, name) or {} for name in ("0000", folder))
    tasks = {name: {"base": base.get(name), "best": best.get(name)} for name in names}
    unscored = [name for name, scores in tasks.items() if None in scores.values()]
    others = {number: guards.read_scores(run_dir, f"{number:04d}") for number in ranked}
    return {
        "tolerance": tolerance,
        "tasks": tasks,
        "lost": [*unscored, *(name for name in guards.lost(base, best, tolerance) if name not in unscored)],
        "finalists": {str(number): scores for number, scores in others.items() if scores is not None},
    }


def _swept(run_dir: Path, study: Study, number: int, metric: str, tolerance: float) -> dict[str, Any] | None:
    """The mixtures with the base model and what was chosen on dev and guards; None where none was scored."""
    found = mixtures(run_dir, study, number, metric)
    if found is None:
        return None
    choice, reason = guards.choose(*found, tolerance)
    base, trained, between = found
    rows = [base, *between, trained]
    return {
        "alpha": choice.alpha,
        "reason": reason,
        "rows": [{"alpha": row.alpha, "dev": row.dev, "guard": dict(row.guard)} for row in rows],
    }


def _front(study: Study, metric: str) -> list[dict[str, Any]] | None:
    """The trials that no other beats on both objectives; None for one objective."""
    names = metric.split(",")
    if len(names) == 1:
        return None
    return [
        {
            "trial": trial.number,
            "values": dict(zip(names, trial.values, strict=True)),
            "params": arguments_of(trial),
        }
        for trial in study.best_trials
    ]


def _hybrid_weights(run_dir: Path, models: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Weights of dense, sparse and colbert in the hybrid score: the default's, and those tuned on dev, by model."""
    weights: dict[str, Any] = {}
    for name, model in models.items():
        path = run_dir / "trials" / model["folder"] / "hybrid.json" if model else None
        if path is not None and path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            weights |= {"default": found["default"], name: found["tuned"]}
    return weights or None


def _counts(study: Study) -> dict[str, int]:
    trials = study.get_trials(deepcopy=False)
    failed = sum(map(has_failed, trials))
    states = Counter(trial.state for trial in trials if not has_failed(trial))
    return {"complete": states[TrialState.COMPLETE], "pruned": states[TrialState.PRUNED], "failed": failed}


def _folder(number: int, mixed: Mixture | None) -> str:
    return f"{number:04d}" if mixed is None else mixture_name(number, mixed.alpha)


def _test_file(run_dir: Path, folder: str) -> Path:
    return run_dir / "trials" / folder / "test.json"


def _test_scores(run_dir: Path, folder: str) -> Scores:
    path = _test_file(run_dir, folder)
    if not path.exists():
        raise ValueError(
            f"Trial {folder} must be scored on test, but {path} does not exist: take the search up again with --resume."
        )
    return Scores.from_json(path.read_text(encoding="utf-8"))


def _model(run_dir: Path, trial: FrozenTrial, metric: str, mixed: Mixture | None = None) -> dict[str, Any]:
    folder = _folder(trial.number, mixed)
    dev = trial.user_attrs.get("scores", {}) if mixed is None else mixed.dev_all
    test = _test_scores(run_dir, folder).means if _test_file(run_dir, folder).exists() else {}
    return {
        "trial": trial.number,
        "folder": folder,
        "alpha": None if mixed is None else mixed.alpha,
        "params": arguments_of(trial),
        "dev": dev.get(metric),
        "test": test.get(metric),
        "dev_all": dict(dev),
        "test_all": test,
    }


def _model_of(run_dir: Path, study: Study, role: str, metric: str) -> dict[str, Any] | None:
    trials = (trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("role") == role)
    return next((_model(run_dir, trial, metric) for trial in trials), None)


def _over_seeds(standing: Standing) -> dict[str, Any]:
    seeds = [{"seed": seed, "dev": dev} for seed, dev in standing.seeds.items()]
    return {"dev_mean": standing.mean, "dev_lower": standing.lower, "seeds": seeds}


def _versus_user(
    run_dir: Path, user: Mapping[str, Any] | None, folder: str, metric: str, seed: int
) -> dict[str, Any] | None:
    """The winner against the user's own settings; None where they are one, or the user's did not reach the test."""
    if user is None or user["test"] is None or user["folder"] == folder:
        return None
    before, after = (_test_scores(run_dir, name).per_query[metric] for name in (user["folder"], folder))
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
