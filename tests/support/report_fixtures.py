"""A finished run directory as a search leaves it, with a real study and simulated scores."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from trainables.scoring.measures import Scores
from trainables.scoring.metric import HEADS, MEASURES
from tuner.study.storage import open_storage
from tuner.study.study import FINALISTS, SEARCH
from tuner.study.trials import value_of
from tuner.verdict import selection
from tuner.verdict.judge import judge

METRIC = "dense.ndcg_at_10"
RUNGS = (0.25, 0.5, 1.0)
HOSTILE = "<script>alert('query')</script> how do I <b>escape</b> & survive?"
CHINESE = "《战国无双3》是由哪两个公司合作开发的？"
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"
WARNING = "dataset.jsonl:118: duplicate query: the same query stands in row 17; their positives are merged"
_SPACE: Mapping[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(2e-6, 3e-5, log=True),
    "temperature": FloatDistribution(0.01, 0.05, log=True),
    "train_group_size": CategoricalDistribution((2, 4, 8)),
    "per_device_train_batch_size": CategoricalDistribution((4, 8, 16)),
    "warmup_ratio": FloatDistribution(0.05, 0.2),
}
_STATES = "CCPCCPFCPCCC"  # by trial number: complete, pruned, failed


def build_run(
    folder: Path,
    *,
    gain: float = 0.05,
    seeds: int = 3,
    states: str = _STATES,
    queries: int = 150,
    guarded: bool = False,
) -> Path:
    """Writes a run directory.

    Args:
        folder: Where; must not exist.
        gain: How much better than the base model the best trials are.
        seeds: Seeds of the three finalists, the search's own among them; 1: no finalists.
        states: One letter for each trial after the base model and the user's: C, P or F.
        queries: Number of test queries.
        guarded: Whether guard tasks were scored.
    """
    generator = np.random.default_rng(5)
    (folder / "trials").mkdir(parents=True)
    _write_data(folder / "data", queries)
    search, finalists = _studies(folder, states, gain, generator)
    for number in selection.finalists(search, 3) if seeds > 1 else []:
        for seed in range(43, 42 + seeds):
            _add(
                finalists, value=value_of(search.trials[number]) + generator.normal(0, 0.004), source=number, seed=seed
            )
    _write_test_scores(folder, sorted({0, 1, *selection.finalists(search, 3)}), gain, queries)
    if guarded:
        _write_guards(folder, selection.finalists(search, 3))
    config = {"metric": METRIC, "seed": 42, "rungs": list(RUNGS), "storage": None, "num_trials": len(states)}
    config["command"] = "python -m tuner.search --model_name_or_path BAAI/bge-m3 --train_data ./dataset.jsonl --fp16"
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    result = judge(
        folder,
        search,
        finalists,
        metric=METRIC,
        seed=42,
        total_seconds=5400.0,
        guard=("NFCorpus", "SciFact") if guarded else (),
        tolerance=0.02,
    )
    result.write(folder)
    return folder


def _write_guards(folder: Path, finalists: list[int]) -> None:
    """Every finalist loses on SciFact, and no mixture of the best is better."""
    for number in (0, *finalists):
        lost = 0.054 if number else 0.0
        scores = {"NFCorpus": 0.315 - lost / 18, "SciFact": 0.641 - lost}
        (folder / "trials" / f"{number:04d}" / "guard.json").write_text(json.dumps(scores))
        rows = [
            {"alpha": alpha, "dev": {METRIC: 0.55}, "guard": {"NFCorpus": 0.313, "SciFact": 0.641 - alpha * lost}}
            for alpha in (0.25, 0.5, 0.75)
        ]
        (folder / "trials" / f"{number:04d}" / "mixtures.json").write_text(json.dumps(rows))


def _studies(
    folder: Path, states: str, gain: float, generator: np.random.Generator
) -> tuple[optuna.Study, optuna.Study]:
    storage = open_storage(None, folder)
    search = optuna.create_study(study_name=SEARCH, storage=storage, direction="maximize")
    finalists = optuna.create_study(study_name=FINALISTS, storage=storage, direction="maximize")
    _add(search, value=0.602, role="base", params={})
    for number, state in enumerate(states[1:], start=1):
        _add_trained(search, number, state, gain, generator)
    return search, finalists


def _add_trained(study: optuna.Study, number: int, state: str, gain: float, generator: np.random.Generator) -> None:
    sampler = optuna.samplers.RandomSampler(seed=number)
    sampled = {
        name: sampler.sample_independent(study, _blank(), name, distribution) for name, distribution in _SPACE.items()
    }
    params = {"learning_rate": 4e-6, "temperature": 0.05} if number == 1 else {}
    params = {**sampled, **params}
    distance = abs(math.log10(params["learning_rate"] / 1.2e-5)) + abs(math.log10(params["temperature"] / 0.02))
    final = 0.602 + gain * (1 - distance) + generator.normal(0, 0.004)
    values = {rung: final - 0.015 * (3 - rung) for rung in range(1, {"C": 4, "P": 2 + number % 2, "F": 2}[state])}
    failed = {"error": OUT_OF_MEMORY, "error_kind": "out_of_memory"} if state == "F" else {}
    role = "user" if number == 1 else "sampled"
    _add(study, value=values.get(3), state=state, params=params, values=values, role=role, **failed)


def _blank() -> FrozenTrial:
    return create_trial(state=TrialState.RUNNING)


def _add(
    study: optuna.Study,
    *,
    value: float | None,
    state: str = "C",
    params: Mapping[str, Any] | None = None,
    values: Mapping[int, float] | None = None,
    **attributes: Any,
) -> None:
    states = {"C": TrialState.COMPLETE, "P": TrialState.PRUNED, "F": TrialState.FAIL}
    last = value if value is not None else max((values or {}).values(), default=None)
    scores = {f"{head}.{measure}": last for head in HEADS for measure in MEASURES} if last is not None else {}
    seconds = {"training": 240.0 * len(values or {}), "scoring": 30.0, "overhead": 8.0}
    study.add_trial(
        create_trial(
            state=states[state],
            value=value,
            params=dict(params or {}),
            distributions={name: _SPACE[name] for name in params or {}},
            intermediate_values=dict(values or {}),
            user_attrs={"seed": 42, "seconds": seconds, "scores": scores, "best_rung": len(values or {})} | attributes,
        )
    )


def _write_data(data: Path, queries: int) -> None:
    (data / "eval" / "qrels").mkdir(parents=True)
    texts = {f"q{number}": f"Which passage speaks of topic {number}?" for number in range(queries)}
    texts |= {"q0": HOSTILE, "q1": CHINESE}
    passages = [
        {"_id": f"p{number}", "title": "", "text": f"Topic {number}: {'a long story. ' * 30}"}
        for number in range(queries)
    ]
    passages[1]["text"] = "《战国无双3》是由光荣和ω-force开发的战国无双系列的正统第三续作。" * 4
    _write_jsonl(data / "eval" / "corpus.jsonl", passages)
    _write_jsonl(data / "eval" / "queries.jsonl", [{"_id": query, "text": text} for query, text in texts.items()])
    judged = [f"q{number}\tp{number}\t1" for number in range(queries)]
    (data / "eval" / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    manifest = {
        "hash": "9f2c" * 16,
        "seed": 42,
        "rows": 4180,
        "negatives": 7,
        "has_scores": False,
        "sources": [{"name": "dataset.jsonl", "sha256": "ab12" * 16}],
        "eval": {"origin": "split off the training data", "queries": {"dev": 150, "test": queries}, "files": {}},
        "characters": {"query": {"median": 48, "p95": 112}, "passage": {"median": 612, "p95": 1840}},
        "negatives_per_row": {"min": 7, "median": 15},
        "warnings": [WARNING],
    }
    (data / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")


def _write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _write_test_scores(folder: Path, numbers: list[int], gain: float, queries: int) -> None:
    """The base model and the user's settings rank the same; the best trials are better by about `gain`."""
    qrels = {f"q{query}": {f"p{query}": 1} for query in range(queries)}
    for number in numbers:
        moved = gain if number > 1 else 0.0
        ranks = {head: _ranks(seed, queries, moved) for seed, head in enumerate(HEADS)}
        rankings = {
            head: {f"q{query}": _ranking(query, rank, queries) for query, rank in enumerate(of_head)}
            for head, of_head in ranks.items()
        }
        (folder / "trials" / f"{number:04d}").mkdir()
        text = Scores.of("test", rankings, qrels).to_json()
        (folder / "trials" / f"{number:04d}" / "test.json").write_text(text, encoding="utf-8")


def _ranks(seed: int, queries: int, gain: float) -> list[int]:
    """Rank of each query's relevant passage; with a gain the hostile query goes to the top, the Chinese one down."""
    generator = np.random.default_rng(seed)
    before, shifts = generator.integers(1, 14, queries), generator.normal(0, 1, queries)
    after = np.maximum(1, before - np.rint(15 * gain + shifts)) if gain else before
    ends = [1, 13] if gain else [13, 1]
    return [*ends, *(int(rank) for rank in after[2:])]


def _ranking(query: int, rank: int, passages: int) -> list[str]:
    """Fifteen passages, the relevant one at `rank`."""
    others = [f"p{(query + shift) % passages}" for shift in range(1, 15)]
    return [*others[: rank - 1], f"p{query}", *others[rank - 1 :]]
