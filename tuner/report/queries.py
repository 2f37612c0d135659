"""The queries that gained and lost most, with the texts of what was retrieved for them before and after."""

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from tuner.verdict.result import MovedQueries, MovedQuery

_SHOWN = 3
_CHARACTERS = 260


def moved_queries(eval_data: Path, queries: MovedQueries) -> dict[str, list[dict[str, Any]]]:
    """Adds texts and relevance to the queries that moved.

    Args:
        eval_data: BEIR folder with corpus.jsonl and qrels/test.tsv; the corpus is read through once, never held.
        queries: Those that gained and lost most.

    Returns:
        ``gained`` and ``lost``: the same rows with ``before_passages`` and ``after_passages`` (the first three: "text",
        "relevant") and ``before_rank`` and ``after_rank``: rank of the first relevant passage, None where it is below
        10.
    """
    sides = {"gained": queries.gained, "lost": queries.lost}
    rows = [row for side in sides.values() for row in side]
    relevant = _relevant(eval_data / "qrels" / "test.tsv", {row.id for row in rows})
    shown = {passage for row in rows for ranking in _rankings(row).values() for passage in ranking[:_SHOWN]}
    texts = _texts(eval_data / "corpus.jsonl", shown)
    return {side: [_with_passages(row, relevant[row.id], texts) for row in moved] for side, moved in sides.items()}


def _rankings(row: MovedQuery) -> dict[str, Sequence[str]]:
    return {"before": row.retrieved_before, "after": row.retrieved_after}


def _with_passages(row: MovedQuery, relevant: Set[str], texts: Mapping[str, str]) -> dict[str, Any]:
    added: dict[str, Any] = {}
    for when, ranking in _rankings(row).items():
        ranks = (rank for rank, passage in enumerate(ranking, start=1) if passage in relevant)
        added[f"{when}_rank"] = next(ranks, None)
        shown = [{"text": texts[passage], "relevant": passage in relevant} for passage in ranking[:_SHOWN]]
        added[f"{when}_passages"] = shown
    return {**vars(row), **added}


def _relevant(path: Path, queries: Set[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {query: set() for query in queries}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        query, passage, relevance = line.split("\t")
        if query in found and int(relevance) > 0:
            found[query].add(passage)
    return found


def _texts(path: Path, wanted: Set[str]) -> dict[str, str]:
    return {row["_id"]: _shortened(row) for row in _rows(path) if row["_id"] in wanted}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _shortened(row: Mapping[str, Any]) -> str:
    text = f"{row.get('title') or ''} {row['text']}".strip()
    return text if len(text) <= _CHARACTERS else text[:_CHARACTERS].rstrip() + " …"
