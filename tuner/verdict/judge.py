"""Whether the winner is better than the base model at all: a finished run, read and judged.

Reads the study, the finalists' retrainings and the scores under trials/.
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
from trainables.names import HYBRID, scores_file
from trainables.scoring.measures import Scores
from trainables.scoring.metric import Metric
from tuner.request.config import SearchConfig
from tuner.run_dir.names import BASE_FOLDER, PREVIOUS_FOLDER, eval_path, mixture_name, trial_name, trial_path
from tuner.study import guards
from tuner.study.guards import GuardRule, Mixture
from tuner.study.study import SearchStudy
from tuner.study.trials import BASE, POOL, ROLE, USER, arguments_of, dev_scores, has_failed, whole_corpus
from tuner.verdict.decision import FINE_TUNE, KEEP, decide, is_certain
from tuner.verdict.encoding import base_folder, own_settings, settings_of, shown_settings
from tuner.verdict.previous import previous
from tuner.verdict.range_ends import range_ends
from tuner.verdict.result import (
    Base,
    Best,
    CandidatePool,
    Counts,
    EncodedBase,
    Finalist,
    FrontRow,
    Guard,
    GuardTask,
    Model,
    MovedQueries,
    MovedQuery,
    Recommended,
    SeedScore,
    Sweep,
    SweepRow,
    Verdict,
)
from tuner.verdict.selection import (
    Standing,
    base_scores,
    best_settings,
    chosen_mixture,
    mixtures,
    noise,
    standings,
    ties,
    winner,
)
from tuner.verdict.statistics import Comparison, compare
from tuner.verdict.time_spent import time_spent

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
    arguments: Mapping[str, Any] | None = None,
) -> Verdict:
    """Judges a finished search.

    Args:
        run_dir: Holds trials/NNNN/test.json of the base model (0000), of the user's settings and of the winner,
            data/eval/queries.jsonl and, where guard tasks were scored, trials/NNNN/guard.json. Where the winner encodes
            otherwise than the user, the same of the base model encoded alike, in `encoding.base_folder`.
        study: The search.
        retrains: The finalists' retrainings, if any.
        metric: The objective, as ``dense.ndcg_at_10``.
        seed: Seed of the resampling.
        total_seconds: Wall clock of the whole search.
        guard: Names of the guard tasks that were asked for.
        tolerance: What a guard task may lose.
        arguments: What the user asked for, by FlagEmbedding's names.

    Raises:
        ValueError: If the base model or the winner was not scored on test.
    """
    own, rule = own_settings(arguments or {}), GuardRule.of(guard, tolerance)
    run = _Run(run_dir=run_dir, study=study, metric=metric, seed=seed, rule=rule, own=own)
    ranked = standings(study, retrains)
    found = _without_winner(run, retrains, ranked, total_seconds)
    number = winner(study, retrains, run_dir=run_dir, rule=rule, own=own)
    return found if number is None else _of_winner(run, found, number, ranked)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """A search as it is judged: see `judge`."""

    run_dir: Path
    study: Study
    metric: str
    seed: int
    rule: GuardRule
    own: Mapping[str, Any]

    def settings(self, number: int) -> dict[str, Any]:
        """What trial `number` encodes with otherwise than the user."""
        return settings_of(arguments_of(self.study.get_trials(deepcopy=False)[number]), self.own)

    def compare(self, before: str, after: str, metric: str | None = None) -> Comparison:
        """Compares two models on test, by their folders."""
        scored = (scores_on_test(self.run_dir, folder).with_metric(metric or self.metric) for folder in (before, after))
        return compare(*(scores.per_query[metric or self.metric] for scores in scored), seed=self.seed)


def _without_winner(run: _Run, retrains: Study | None, ranked: Sequence[Standing], total_seconds: float) -> Verdict:
    """What there is to say although no trial was trained to its end."""
    base, user = (_model_of(run, role) for role in (BASE, USER))
    return Verdict(
        metric=run.metric,
        verdict=KEEP,
        reason="No trial was trained to its end.",
        base=None if base is None else Base(**vars(base)),
        user=user,
        best=None,
        trials=_counts(run.study),
        seconds=time_spent(run.run_dir, [run.study, retrains], total_seconds),
        noise=noise(ranked),
        finalists=[_finalist(run, standing) for standing in ranked if standing.lower is not None],
        front=_front(run.study, Metric.read(run.metric)),
        candidate_pool=_candidate_pool(run.study),
    )


def _of_winner(run: _Run, found: Verdict, number: int, ranked: Sequence[Standing]) -> Verdict:
    """Adds to `found` what there is to say of the winner."""
    mixed = chosen_mixture(run.run_dir, run.study, number, run.metric, run.rule, run.own)
    best = _model(run, run.study.get_trials(deepcopy=False)[number], mixed)
    alike = base_folder(run.settings(number))
    before, after = (scores_on_test(run.run_dir, folder) for folder in (alike, best.folder))
    gains = {name: compare(value, after.per_query[name], seed=run.seed) for name, value in before.per_query.items()}
    base = _base(run, found, number)
    guarded = _guard(run, alike, best.folder, [s.trial for s in ranked])
    parts = _parts(run, alike, best.folder)
    verdict, reason = decide(gains[run.metric], guarded, parts, _rivals(run, base, alike, best.folder))
    standing = next(standing for standing in ranked if standing.trial == number)
    return dataclasses.replace(
        found,
        verdict=verdict,
        reason=reason,
        base=base,
        best=Best(**vars(best), **vars(gains[run.metric]), **_over_seeds(standing)),
        recommended=_recommended(run, verdict, base, best),
        guard=guarded,
        ties=ties([standing, *(other for other in ranked if other is not standing)]),
        objectives=parts or None,
        gains=gains,
        versus_base=run.compare(BASE_FOLDER, best.folder) if alike != BASE_FOLDER else None,
        versus_user=_versus_user(run, found.user, best.folder),
        previous=previous(run.run_dir, best.folder, run.metric, seed=run.seed),
        optimism=None if best.dev is None or best.test is None else best.dev - best.test,
        mixtures=_swept(run, number),
        hybrid_weights=_hybrid_weights(run.run_dir, {"base": base, "user": found.user, "best": best}),
        range_ends=range_ends(run.study.get_trials(deepcopy=False)[number]),
        queries=_moved_queries(eval_path(run.run_dir), before, after, run.metric),
    )


def _base(run: _Run, found: Verdict, number: int) -> Base:
    """The base model, with what it scores as trial `number` encodes and with the settings it is best used with."""
    assert found.base is not None, "the base model is trial 0"
    best = best_settings(run.run_dir, run.study, run.metric, run.rule, run.own)
    return dataclasses.replace(
        found.base,
        encoded_as_best=_encoded_base(run, run.settings(number)),
        at_its_best=_encoded_base(run, best) if _test_file(run.run_dir, base_folder(best)).exists() else None,
    )


def _encoded_base(run: _Run, settings: Mapping[str, Any]) -> EncodedBase | None:
    if not settings:
        return None
    folder = base_folder(settings)
    dev, test = base_scores(run.run_dir, run.study, folder), scores_on_test(run.run_dir, folder).means
    scores: dict[str, Any] = {
        "dev": dev.get(run.metric),
        "test": test.get(run.metric),
        "dev_all": dev,
        "test_all": test,
    }
    return EncodedBase(trial=0, folder=folder, params=settings, **scores, **vars(run.compare(BASE_FOLDER, folder)))


def _rivals(run: _Run, base: Base, alike: str, best: str) -> dict[str, Comparison]:
    """The winner against the base model encoded otherwise than the winner is: the user's way, and the best way."""
    named = {BASE_FOLDER: "with your own settings"}
    if base.at_its_best is not None:
        named[base.at_its_best.folder] = f"with {shown_settings(base.at_its_best.params)}"
    return {name: run.compare(folder, best) for folder, name in named.items() if folder != alike}


def _recommended(run: _Run, verdict: str, base: Base, best: Model) -> Recommended:
    """The winner; or the base model, with other settings than the user's only where they are better for certain."""
    if verdict == FINE_TUNE:
        return Recommended(trial=best.trial, folder=best.folder)
    other = base.at_its_best
    if other is None or not is_certain(other):
        return Recommended(trial=0, folder=BASE_FOLDER)
    parts = _parts(run, BASE_FOLDER, other.folder).values()
    if any(part.ci95[1] < 0 for part in parts):
        return Recommended(trial=0, folder=BASE_FOLDER)
    return Recommended(trial=0, folder=other.folder, settings=other.params)


def _finalist(run: _Run, standing: Standing) -> Finalist:
    base = base_scores(run.run_dir, run.study, base_folder(run.settings(standing.trial)))
    return Finalist(trial=standing.trial, base_dev=base.get(run.metric), **_over_seeds(standing))


def rests_on(job: TrialConfig, run_dir: Path, study: SearchStudy, config: SearchConfig) -> bool:
    """Whether there is no verdict without a job, which scores a base model or the winner on test: others are shown."""
    own, rule = own_settings(config.arguments), GuardRule.of(config.guard, config.guard_tolerance)
    number = winner(study.search, study.finalists, run_dir=run_dir, rule=rule, own=own)
    shown = {_folder(user, None) for user in study.users if user != number} | {PREVIOUS_FOLDER}
    return job.split == "test" and job.name not in shown


def scores_on_test(run_dir: Path, folder: str) -> Scores:
    """Returns the scores on test of the model in RUN/trials/`folder`.

    Raises:
        ValueError: There are none.
    """
    path = _test_file(run_dir, folder)
    if not path.exists():
        raise ValueError(
            f"Trial {folder} must be scored on test, but {path} does not exist: take the search up again with --resume."
        )
    return Scores.from_json(path.read_text(encoding="utf-8"))


def _parts(run: _Run, before: str, after: str) -> dict[str, Comparison]:
    """The gain in each of several objectives; empty for one."""
    metric = Metric.read(run.metric)
    return {part: run.compare(before, after, part) for part in (metric.names if metric.is_pareto else ())}


def _guard(run: _Run, alike: str, folder: str, ranked: Sequence[int]) -> Guard | None:
    """Guard tasks of the winner and of the base model, encoded alike and as it is; None where none was asked for.

    What was not scored counts as lost.
    """
    names, tolerance = run.rule.tasks, run.rule.tolerance
    if not names:
        return None
    base, best, as_is = (run.rule.read(run.run_dir, name) or {} for name in (alike, folder, BASE_FOLDER))
    unscored = [name for name in names if name not in base or name not in best]
    lost = {*guards.lost(base, best, tolerance), *guards.lost(as_is, best, tolerance)}
    own = {name: as_is.get(name) for name in names} if alike != BASE_FOLDER else {}
    scored = {number: run.rule.read(run.run_dir, trial_name(number)) for number in ranked}
    bases = {number: run.rule.read(run.run_dir, base_folder(run.settings(number))) for number in ranked}
    return Guard(
        tolerance=tolerance,
        tasks={n: GuardTask(base=base.get(n), best=best.get(n), base_as_is=own.get(n)) for n in names},
        lost=[*unscored, *(name for name in base if name in lost and name not in unscored)],
        finalists={str(number): scores for number, scores in scored.items() if scores is not None},
        finalist_bases={str(n): scores for n, scores in bases.items() if scores is not None and scored[n] is not None},
    )


def _swept(run: _Run, number: int) -> Sweep | None:
    """The mixtures with the base model and what was chosen on dev and guards; None where none was scored."""
    found = mixtures(run.run_dir, run.study, number, run.metric, run.rule, run.own)
    if found is None:
        return None
    choice, reason = guards.choose(*found, run.rule.tolerance)
    base, trained, between = found
    rows = [SweepRow(alpha=row.alpha, dev=row.dev, guard=dict(row.guard)) for row in (base, *between, trained)]
    return Sweep(alpha=choice.alpha, reason=reason, rows=rows)


def _front(study: Study, metric: Metric) -> list[FrontRow] | None:
    """The trials that no other beats on both objectives; None for one objective."""
    if not metric.is_pareto:
        return None
    return [
        FrontRow(
            trial=trial.number, values=dict(zip(metric.names, trial.values, strict=True)), params=arguments_of(trial)
        )
        for trial in study.best_trials
    ]


def _hybrid_weights(run_dir: Path, models: Mapping[str, Model | None]) -> dict[str, Any] | None:
    """Weights of dense, sparse and colbert in the hybrid score: the default's, and those tuned on dev, by model."""
    weights: dict[str, Any] = {}
    for name, model in models.items():
        path = trial_path(run_dir, model.folder) / HYBRID if model else None
        if path is not None and path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            weights |= {"default": found["default"], name: found["tuned"]}
    return weights or None


def _counts(study: Study) -> Counts:
    trials = study.get_trials(deepcopy=False)
    states = Counter(trial.state for trial in trials if not has_failed(trial))
    return Counts(
        complete=states[TrialState.COMPLETE],
        pruned=states[TrialState.PRUNED],
        failed=sum(map(has_failed, trials)),
    )


def _folder(number: int, mixed: Mixture | None) -> str:
    return trial_name(number) if mixed is None else mixture_name(number, mixed.alpha)


def _test_file(run_dir: Path, folder: str) -> Path:
    return trial_path(run_dir, folder) / scores_file("test")


def _model(run: _Run, trial: FrozenTrial, mixed: Mixture | None = None) -> Model:
    folder = _folder(trial.number, mixed)
    dev = dev_scores(run.study, trial) if mixed is None else mixed.dev_all
    test = scores_on_test(run.run_dir, folder).means if _test_file(run.run_dir, folder).exists() else {}
    return Model(
        trial=trial.number,
        folder=folder,
        alpha=None if mixed is None else mixed.alpha,
        params=arguments_of(trial),
        dev=dev.get(run.metric),
        test=test.get(run.metric),
        dev_all=dict(dev),
        test_all=test,
    )


def _model_of(run: _Run, role: str) -> Model | None:
    trials = (trial for trial in run.study.get_trials(deepcopy=False) if trial.user_attrs.get(ROLE) == role)
    return next((_model(run, trial) for trial in trials), None)


def _candidate_pool(study: Study) -> CandidatePool | None:
    """What trials were scored on at rungs; None where it was the whole corpus."""
    pool = study.user_attrs.get(POOL)
    if not pool:
        return None
    whole = sorted({0, *whole_corpus(study)})
    return CandidatePool(passages=pool["passages"], corpus=pool["corpus"], whole_corpus=whole)


def _over_seeds(standing: Standing) -> dict[str, Any]:
    seeds = [SeedScore(seed=seed, dev=dev) for seed, dev in standing.seeds.items()]
    return {"dev_mean": standing.mean, "dev_lower": standing.lower, "seeds": seeds}


def _versus_user(run: _Run, user: Model | None, folder: str) -> Comparison | None:
    """The winner against the user's own settings; None where they are one, or the user's did not reach the test."""
    if user is None or user.test is None or user.folder == folder:
        return None
    return run.compare(user.folder, folder)


def _moved_queries(eval_data: Path, before: Scores, after: Scores, metric: str) -> MovedQueries:
    """The queries that gained and lost most, with what the dense head retrieved before and after."""
    old, new = before.per_query[metric], after.per_query[metric]
    gains = {query: new[query] - old[query] for query in old}
    ordered = sorted(gains, key=lambda query: gains[query])
    gained = [query for query in reversed(ordered[-QUERIES_SHOWN:]) if gains[query] > 0]
    lost = [query for query in ordered[:QUERIES_SHOWN] if gains[query] < 0]
    texts = _query_texts(eval_data, {*gained, *lost})

    def row(query: str) -> MovedQuery:
        return MovedQuery(
            id=query,
            text=texts[query],
            before=old[query],
            after=new[query],
            retrieved_before=before.retrieved[query],
            retrieved_after=after.retrieved[query],
        )

    return MovedQueries(gained=[row(query) for query in gained], lost=[row(query) for query in lost])


def _query_texts(eval_data: Path, wanted: Set[str]) -> dict[str, str]:
    with (eval_data / "queries.jsonl").open(encoding="utf-8") as lines:
        queries = (json.loads(line) for line in lines if line.strip())
        return {query["_id"]: query["text"] for query in queries if query["_id"] in wanted}
