"""Held-out queries as a BEIR folder: corpus.jsonl, queries.jsonl, qrels/dev.tsv and qrels/test.tsv."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.data.findings import Findings
from tuner.data.rows import Fault, encodable
from tuner.data.sources import read_rows

SPLITS = ("dev", "test")
HEADER = ("query-id", "corpus-id", "score")
FILES = ("corpus.jsonl", "queries.jsonl", "qrels/dev.tsv", "qrels/test.tsv")

_RELEVANCE = re.compile(r"-?\d{1,9}")
"""TREC's judgements go below 0: spam, or another language. Not relevant, all of them."""

Passage = dict[str, str]
Qrels = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A candidate corpus and the held-out queries that search it."""

    corpus: Iterable[Passage]
    """Passages {"_id", "title", "text"}; iterated once, so that it need not fit in memory."""

    queries: Mapping[str, str]
    """Query id -> text, for the queries of dev and test."""

    qrels: Mapping[str, Qrels]
    """Split -> query id -> passage id -> relevance, an integer from 0."""


def write(evaluation: Evaluation, folder: Path) -> None:
    """Writes corpus, queries and a file of judgements for each split."""
    (folder / "qrels").mkdir(parents=True)
    write_jsonl(folder / "corpus.jsonl", evaluation.corpus)
    queries = (query for judged in evaluation.qrels.values() for query in judged)
    write_jsonl(folder / "queries.jsonl", ({"_id": query, "text": evaluation.queries[query]} for query in queries))
    for split, qrels in evaluation.qrels.items():
        judged = [HEADER, *_lines(qrels)]
        text = "".join("\t".join(line) + "\n" for line in judged)
        (folder / "qrels" / f"{split}.tsv").write_text(text, encoding="utf-8", newline="\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes one object a line, the same bytes on every machine, and returns how many."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read(folder: Path, findings: Findings, *, splits: Sequence[str] = SPLITS, flag: str = "--eval_data") -> Evaluation:
    """Reads and checks a BEIR folder.

    Args:
        folder: What `flag` names.
        findings: Gets everything wrong with it; when one is fatal, the result is not to be used.
        splits: Files in qrels/ that it must have.
        flag: The option that names it.

    Returns:
        The queries that the splits judge, in the order of their first judgement, and the whole corpus.
    """
    needed = ("corpus.jsonl", "queries.jsonl", *(f"qrels/{split}.tsv" for split in splits))
    missing = [name for name in needed if not (folder / name).is_file()]
    for name in missing:
        fault = Fault("BEIR file missing", f"{flag} needs the files {', '.join(needed)}; this one is not there")
        findings.add(str(folder / name), None, fault)
    if missing:
        return Evaluation(corpus=(), queries={}, qrels={})
    passages = set(_read_texts(folder / "corpus.jsonl", findings))
    queries = _read_texts(folder / "queries.jsonl", findings)
    qrels = {split: _read_qrels(folder / "qrels" / f"{split}.tsv", queries, passages, findings) for split in splits}
    if {*SPLITS} <= qrels.keys():
        _find_shared(folder, qrels, queries, findings)
    used = {query: queries.get(query, "") for judged in qrels.values() for query in judged}
    return Evaluation(corpus=_passages(folder / "corpus.jsonl"), queries=used, qrels=qrels)


def read_corpus(folder: Path, findings: Findings, *, flag: str) -> Iterable[Passage]:
    """Reads and checks the passages of a BEIR folder that need have no queries; `read` says the rest."""
    path = folder / "corpus.jsonl"
    if not path.is_file():
        findings.add(str(path), None, Fault("BEIR file missing", f"{flag} needs this file, which is not there"))
        return ()
    before = findings.counts()[0]
    _read_texts(path, findings)
    return _passages(path) if findings.counts()[0] == before else ()


def full_text(passage: Passage) -> str:
    """Returns a passage as it is scored: title and text joined by a blank, as mteb joins them."""
    return f"{passage['title']} {passage['text']}".strip()


def _passages(path: Path) -> Iterator[Passage]:
    for _, row in read_rows(path):
        yield {"_id": row["_id"], "title": row.get("title") or "", "text": row["text"]}


def _read_texts(path: Path, findings: Findings) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, row in read_rows(path):
        fault = _text_fault(row, texts)
        if fault:
            findings.add(str(path), number, fault)
        else:
            texts[row["_id"]] = row["text"] if path.name == "queries.jsonl" else ""
    if not texts:
        findings.add(str(path), None, Fault("BEIR file empty", "the file has no usable row"))
    return texts


def _text_fault(row: Any, texts: Mapping[str, str]) -> Fault | None:
    if isinstance(row, Fault):
        return row
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("_id", "text")):
        return Fault("BEIR row", 'a row must be an object with the strings "_id" and "text"')
    if not isinstance(row.get("title", ""), str | None):
        return Fault("BEIR title", '"title" must be a string')
    if not all(encodable(row.get(name) or "") for name in ("_id", "title", "text")):
        return Fault("BEIR surrogate", f"row {row['_id']!r} holds half of a surrogate pair, which UTF-8 cannot express")
    if row["_id"] in texts:
        return Fault("BEIR id repeated", f"the id {row['_id']!r} was used before")
    if not row["_id"].strip() or any(space in row["_id"] for space in "\t\r\n"):
        return Fault("BEIR id", f"the id {row['_id']!r} must not be empty nor hold tabs or line ends")
    return None


def _read_qrels(path: Path, queries: Mapping[str, str], passages: set[str], findings: Findings) -> Qrels:
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    if not lines or tuple(lines[0].split("\t")) != HEADER:
        message = f"line 1 must be the header {' '.join(HEADER)}, separated by tabs"
        findings.add(str(path), 1, Fault("qrels header", message))
        return {}
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(lines[1:], start=2):
        fault = _qrels_fault(line.split("\t"), queries, passages)
        if fault:
            findings.add(str(path), number, fault)
        elif line:
            query, passage, score = line.split("\t")
            qrels.setdefault(query, {})[passage] = max(int(score), 0)
    _find_unjudged(path, qrels, findings)
    return qrels


def _qrels_fault(cells: list[str], queries: Mapping[str, str], passages: set[str]) -> Fault | None:
    if cells == [""]:
        return None
    if len(cells) != len(HEADER) or not _RELEVANCE.fullmatch(cells[2].strip()):
        return Fault("qrels row", f"a row must be {' '.join(HEADER)} separated by tabs, score an integer")
    if cells[0] not in queries:
        return Fault("qrels query", f"the query id {cells[0]!r} is not in queries.jsonl")
    if cells[1] not in passages:
        return Fault("qrels passage", f"the passage id {cells[1]!r} is not in corpus.jsonl")
    return None


def _find_unjudged(path: Path, qrels: Qrels, findings: Findings) -> None:
    if not qrels:
        findings.add(
            str(path), None, Fault("qrels empty", "no judgement; every split needs queries with relevant passages")
        )
    for query, judged in qrels.items():
        if not any(judged.values()):
            fault = Fault("qrels irrelevant", f"query {query!r} has no relevant passage, so it scores 0 with any model")
            findings.add(str(path), None, fault, fatal=False)


def _find_shared(folder: Path, qrels: Mapping[str, Qrels], queries: Mapping[str, str], findings: Findings) -> None:
    dev = {queries[query].strip() for query in qrels["dev"]}
    for query in qrels["test"]:
        if queries[query].strip() in dev:
            message = f"test query {query!r} stands in dev too, so the search would have seen it; remove it from one"
            findings.add(str(folder / "qrels" / "test.tsv"), None, Fault("query in dev and test", message))


def _lines(qrels: Qrels) -> Iterator[tuple[str, str, str]]:
    for query, judged in qrels.items():
        for passage, score in judged.items():
            yield query, passage, str(score)


def count_passages(folder: Path) -> int:
    """Returns how many passages the corpus of a BEIR folder has; 0 where there is none."""
    path = folder / "corpus.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())
