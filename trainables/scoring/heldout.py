"""Held-out retrieval data in BEIR's layout: ``corpus.jsonl``, ``queries.jsonl``, ``qrels/<split>.tsv``."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Qrels = dict[str, dict[str, int]]
"""query id -> passage id -> relevance."""


def read_passages(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of the corpus in the file's order, title and text joined by a blank as mteb joins them."""
    for row in _rows(folder / "corpus.jsonl"):
        title, text = row.get("title") or "", row["text"]
        yield row["_id"], f"{title} {text}".strip()


def read_qrels(folder: Path, split: str) -> Qrels:
    """Read the judgements of a split.

    Raises:
        ValueError: the split has no file, or the file holds no judgement.
    """
    path = folder / "qrels" / f"{split}.tsv"
    if not path.exists():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.tsv"))) or "none"
        raise ValueError(f"{folder}: no split {split!r} (splits there: {there}); add qrels/{split}.tsv")
    qrels: Qrels = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    if not qrels:
        raise ValueError(f"{path}: a split must hold at least one judgement, but the file has none")
    return qrels


def read_queries(folder: Path, qrels: Qrels) -> dict[str, str]:
    """Return id -> text of the judged queries, in the file's order.

    Raises:
        ValueError: a judged query has no text in ``queries.jsonl``.
    """
    queries = {row["_id"]: row["text"] for row in _rows(folder / "queries.jsonl") if row["_id"] in qrels}
    missing = sorted(qrels.keys() - queries.keys())
    if missing:
        raise ValueError(f"{folder / 'queries.jsonl'}: {len(missing)} judged queries are missing, e.g. {missing[0]!r}")
    return queries


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())
