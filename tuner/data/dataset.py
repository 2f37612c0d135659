"""Training data in FlagEmbedding's format: checked, split, hashed and written into the run directory."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainables.files import files_in, flush, prune, write_text
from tuner.data import beir
from tuner.data.findings import Finding, Findings
from tuner.data.rows import Fault
from tuner.data.sources import Source, content_hash, stem_of
from tuner.data.splits import ENOUGH_QUERIES, MIN_QUERIES, assign, fingerprint
from tuner.data.survey import Survey, rows_of, survey
from tuner.errors import RequestError, counted
from tuner.run_dir.names import ARRIVING, EVAL, MANIFEST, TRAIN
from tuner.run_dir.safe_names import inside
from tuner.run_dir.written import data_files, no_search_wrote

__all__ = ["Dataset", "Finding", "check", "find_leaks", "load", "prepare", "take_over"]

_PARTS = (TRAIN, EVAL)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Checked and split data, as it lies in a run directory."""

    train_data: tuple[str, ...]
    """Absolute paths for FlagEmbedding's `--train_data`, in the order they were given."""

    eval_data: str
    """Absolute path of the BEIR folder with the dev and test queries."""

    rows: int
    """Number of training rows, the held-out ones not among them."""

    negatives: int
    """Negatives that at least nine rows in ten have.

    A larger `train_group_size - 1` would repeat negatives in most rows; the minimum would let one short row limit all.
    """

    has_scores: bool
    """Whether every row has a teacher's scores, which `--knowledge_distillation` needs."""

    hash: str
    """SHA-256 of the contents that train and judge; equal for equal contents, on any machine and under any path."""

    manifest: dict[str, Any]
    """What manifest.json holds: hashes, counts, splits, sizes, warnings."""

    def rows_used(self, arguments: Mapping[str, Any]) -> int:
        """Returns how many training rows an epoch has: `max_example_num_per_dataset` is the most of each file."""
        most = arguments.get("max_example_num_per_dataset") or self.rows
        return sum(min(file["rows"], most) for train in self.manifest["train"] for file in train["files"])


def check(train_data: Sequence[str]) -> list[Finding]:
    """Checks every row of the training data.

    Args:
        train_data: Files and folders, as FlagEmbedding's `--train_data` takes them.

    Returns:
        All findings in reading order, the fatal ones and the warnings; of one kind, the first ones and a count.
    """
    return survey(train_data).findings.all()


def prepare(train_data: Sequence[str], *, folder: Path, eval_data: str | None, seed: int) -> Dataset:
    """Checks the data, splits it unless held-out queries are given, and writes it.

    The rows are written with FlagEmbedding's fields only, in the order they were read. Without `eval_data` the
    candidate corpus is every passage of every row; a passage's id is a fingerprint of its text.

    Args:
        train_data: Files and folders, as FlagEmbedding's `--train_data` takes them.
        folder: Where to write; what an earlier call wrote there is replaced.
        eval_data: A BEIR folder with the splits dev and test, or None to hold out queries of the training data.
        seed: Draws the queries that are held out.

    Raises:
        RequestError: With everything found, when anything found is fatal.
    """
    surveyed = survey(train_data)
    evaluation = beir.read(Path(eval_data), surveyed.findings) if eval_data else None
    if eval_data and evaluation:
        find_leaks(surveyed, evaluation)
        _find_too_few(evaluation, surveyed.findings, Path(eval_data))
    _refuse_if_fatal(surveyed.findings)
    splits = ["train"] * len(surveyed.queries)
    if not evaluation:
        splits = assign(surveyed.queries, surveyed.positives, seed=seed)
        evaluation = _hold_out(surveyed, splits)
    _find_few(evaluation, surveyed.findings, eval_data or train_data[0])
    origin = {"origin": "held out of --train_data"}
    if eval_data:
        origin = {"origin": "--eval_data", "name": Path(eval_data).resolve().name}
    return _write(surveyed, splits, evaluation, folder=folder, seed=seed, origin=origin)


def load(folder: Path) -> Dataset:
    """Reads what `prepare` wrote, wherever the folder lies now.

    Raises:
        UnsafeNameError: The manifest names a file elsewhere.
    """
    source = str(folder / MANIFEST)
    manifest = json.loads(Path(source).read_text(encoding="utf-8"))
    return Dataset(
        train_data=tuple(str(inside(folder, train["path"], source).resolve()) for train in manifest["train"]),
        eval_data=str((folder / EVAL).resolve()),
        rows=manifest["rows"],
        negatives=manifest["negatives"],
        has_scores=manifest["has_scores"],
        hash=manifest["hash"],
        manifest=manifest,
    )


def take_over(dataset: Dataset, folder: Path) -> Dataset:
    """Puts data that was prepared in another folder of the same disk in the place of what was prepared in `folder`.

    What else lies there stays. A kill leaves a manifest of what was to come beside that of what was there, so that the
    next call knows both.

    Raises:
        RequestError: A file that no call has written stands in the place of one of them.
    """
    prepared = Path(dataset.eval_data).parent
    arriving = sorted(files_in(prepared) - {MANIFEST})
    _require_no_others(folder, arriving)
    write_text(folder / ARRIVING, (prepared / MANIFEST).read_text("utf-8"))
    _remove_parts(folder)
    for name in arriving:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (prepared / name).rename(folder / name)
    (prepared / MANIFEST).replace(folder / MANIFEST)
    (folder / ARRIVING).unlink()
    flush(folder)
    return load(folder)


def _require_no_others(folder: Path, names: Sequence[str]) -> None:
    known = data_files(folder)
    found = [folder / name for name in names if name not in known and os.path.lexists(folder / name)]
    if found:
        raise RequestError([no_search_wrote(path) for path in found])


def _remove_parts(folder: Path) -> None:
    """Removes what `prepare` has written into `folder`, but for the manifests."""
    names = [name for name in data_files(folder) if Path(name).parts[0] in _PARTS]
    for name in names:
        (folder / name).unlink(missing_ok=True)
    prune(folder, names)


def _refuse_if_fatal(findings: Findings) -> None:
    if findings.counts()[0]:
        raise RequestError([str(finding) for finding in findings.all()])


def find_leaks(surveyed: Survey, evaluation: beir.Evaluation) -> None:
    """Finds rows whose query is held out."""
    held_out = {fingerprint(text) for text in evaluation.queries.values()}
    for row, query in enumerate(surveyed.queries):
        if query in held_out:
            message = (
                "the query stands in dev or test of --eval_data, so scores on it would say nothing; remove the row"
            )
            surveyed.findings.add(*surveyed.place(row), Fault("held-out query in training", message))


def _find_too_few(evaluation: beir.Evaluation, findings: Findings, folder: Path) -> None:
    for split, judged in evaluation.qrels.items():
        if 0 < len(judged) < MIN_QUERIES:
            message = (
                f"{split} must have at least {MIN_QUERIES} queries, but has {len(judged)}; add some, "
                "or leave --eval_data out to hold queries out of the training data"
            )
            findings.add(str(folder / "qrels" / f"{split}.tsv"), None, Fault(f"too few {split} queries", message))


def _find_few(evaluation: beir.Evaluation, findings: Findings, name: str) -> None:
    for split in beir.SPLITS:
        count = len(evaluation.qrels[split])
        if count < ENOUGH_QUERIES:
            told = f"below {ENOUGH_QUERIES}, small differences cannot be told from chance"
            message = f"{split} has {counted(count, 'query')}; {told}"
            findings.add(name, None, Fault(f"few {split} queries", message), fatal=False)


def _hold_out(surveyed: Survey, splits: Sequence[str]) -> beir.Evaluation:
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, dict[str, int]]] = {split: {} for split in beir.SPLITS}
    for split, row in zip(splits, _rows(surveyed), strict=True):
        if split != "train":
            query = fingerprint(row["query"]).hex()
            queries.setdefault(query, row["query"].strip())
            qrels[split].setdefault(query, {}).update((fingerprint(text).hex(), 1) for text in row["pos"])
    return beir.Evaluation(corpus=_distinct_passages(surveyed), queries=queries, qrels=qrels)


def _distinct_passages(surveyed: Survey) -> Iterator[beir.Passage]:
    seen: set[bytes] = set()
    for row in _rows(surveyed):
        for text in (*row["pos"], *row["neg"]):
            key = fingerprint(text)
            if key not in seen:
                seen.add(key)
                yield {"_id": key.hex(), "title": "", "text": text.strip()}


def _rows(surveyed: Survey) -> Iterator[dict[str, Any]]:
    return rows_of(path for path, _ in surveyed.files)


def _write(
    surveyed: Survey,
    splits: Sequence[str],
    evaluation: beir.Evaluation,
    *,
    folder: Path,
    seed: int,
    origin: Mapping[str, str],
) -> Dataset:
    _remove_parts(folder)
    _require_no_others(folder, _PARTS)
    beir.write(evaluation, folder / EVAL)
    train = _write_train(surveyed, iter(splits), folder)
    files = {name: content_hash(folder / EVAL / name) for name in beir.FILES}
    queries = {split: len(evaluation.qrels[split]) for split in beir.SPLITS}
    manifest = {
        "hash": _overall_hash(train, files),
        "seed": seed,
        "train": train,
        "eval": {**origin, "queries": queries, "files": files},
        **_describe(surveyed, splits),
    }
    write_text(folder / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=2) + "\n")
    return load(folder)


def _describe(surveyed: Survey, splits: Sequence[str]) -> dict[str, Any]:
    negatives = Counter(count for count, split in zip(surveyed.negatives, splits, strict=True) if split == "train")
    return {
        "rows": negatives.total(),
        "held_out_rows": len(splits) - negatives.total(),
        "negatives": _quantile(negatives, 0.1),
        "has_scores": surveyed.has_scores,
        "sources": [{"name": path.name, "sha256": content_hash(path)} for path, _ in surveyed.files],
        "negatives_per_row": {"min": min(negatives), "median": _quantile(negatives, 0.5)},
        "characters": {name: _sizes(getattr(surveyed, f"{name}_lengths")) for name in ("query", "passage")},
        "warnings": [replace(finding, file=Path(finding.file).name).unmarked for finding in surveyed.findings.all()],
    }


def _write_train(surveyed: Survey, splits: Iterator[str], folder: Path) -> list[dict[str, Any]]:
    """Writes each source under a numbered name; files that are left without rows are left out."""
    written = []
    for number, source in enumerate(surveyed.sources):
        name = source.name if source.is_folder else f"{source.stem}.jsonl"
        path = folder / TRAIN / f"{number:03d}-{name}"
        files = _write_source(source, splits, path, _Schema.of(surveyed))
        if files:
            relative = path.relative_to(folder).as_posix()
            written.append({"path": relative, "no_in_batch_neg": source.no_in_batch_neg, "files": files})
    return written


def _write_source(source: Source, splits: Iterator[str], path: Path, schema: "_Schema") -> list[dict[str, Any]]:
    files = []
    for number, file in enumerate(source.files):
        target = path / f"{number:03d}-{stem_of(file)}.jsonl" if source.is_folder else path
        target.parent.mkdir(parents=True, exist_ok=True)
        kept = (row for row, split in zip(rows_of([file]), splits, strict=False) if split == "train")
        kind = next((row["type"] for row in rows_of([file]) if row.get("type") is not None), "") if schema.type else ""
        count = beir.write_jsonl(target, (schema.row(row, kind) for row in kept))
        if count:
            files.append({"name": target.name, "rows": count, "sha256": content_hash(target)})
        else:
            target.unlink()
    return files


@dataclass(frozen=True, kw_only=True)
class _Schema:
    """The fields of every training row that is written, the same in all of them.

    `datasets` 5.2 takes a column's type from a file's first 10 MB, and fails on a field that appears, ends or turns
    from whole numbers to fractions after them.
    """

    scores: bool
    prompt: bool
    type: bool

    @classmethod
    def of(cls, surveyed: Survey) -> "_Schema":
        optional = surveyed.optional
        return cls(scores=surveyed.has_scores, prompt=bool(optional["prompt"]), type=bool(optional["type"]))

    def row(self, row: Mapping[str, Any], kind: str) -> dict[str, Any]:
        """Returns what is written of a checked row, in a file whose rows are of type `kind`."""
        written = {name: row[name] for name in ("query", "pos", "neg")}
        if self.scores:
            written |= {name: [float(score) for score in row[name]] for name in ("pos_scores", "neg_scores")}
        if self.prompt:
            written["prompt"] = row.get("prompt") or ""
        return written | ({"type": kind} if self.type else {})


def _overall_hash(train: Sequence[Mapping[str, Any]], files: Mapping[str, str]) -> str:
    contents = [[source["no_in_batch_neg"], [file["sha256"] for file in source["files"]]] for source in train]
    return hashlib.sha256(json.dumps([contents, sorted(files.items())]).encode()).hexdigest()


def _sizes(lengths: Counter[int]) -> dict[str, int]:
    return {"median": _quantile(lengths, 0.5), "p95": _quantile(lengths, 0.95)}


def _quantile(counts: Counter[int], share: float) -> int:
    """Returns the smallest value that at least `share` of the counted values do not exceed."""
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= share * counts.total():
            return value
    raise AssertionError("no value was counted")
