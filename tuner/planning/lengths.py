"""How many tokens the training texts have, and how many of them are cut."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from trainables.config import DEFAULT_LENGTHS
from tuner.data.sources import read_rows
from tuner.errors import counted

_ROWS = 500
_CHARACTERS = 4_000_000
"""Of the rows that are looked at, the first ones: a tokenizer reads so many in about a second."""
_BATCH = 64
_QUERY, _PASSAGE = "query", "passage"


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of a kind of text, special tokens included."""

    kind: str
    """``query`` or ``passage``."""
    median: int
    long: int
    """All but a twentieth have so many at most."""
    limit: int
    cut: float
    """Share of the texts that is longer than the limit."""


def say_lengths(model: Path, train_data: Sequence[str], arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence on the lengths of queries and passages; nothing where no file says how to count.

    Args:
        model: The base model's folder. Without a tokenizer.json in it, nothing is said.
        train_data: The files, or folders of them, that a search trains on.
        arguments: The user's, of which instructions and lengths count.
    """
    try:
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    except Exception:  # the library raises no narrower one for a file that is not there or not its own
        return
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if not (rows := list(_first(_rows(train_data)))):
        return
    found = [_measure(tokenizer, kind, _texts(rows, kind, arguments), arguments) for kind in (_QUERY, _PASSAGE)]
    queries, passages = found
    cuts = " and ".join(f"{100 * each.cut:.3g}% at --{each.kind}_max_len {each.limit}" for each in found)
    yield (
        f"queries have {queries.median} tokens (95% at most {queries.long}), passages {passages.median} (95% at most "
        f"{passages.long}); cut are {cuts} (medians, of the first {counted(len(rows), 'row')})"
    )


def _measure(tokenizer: Tokenizer, kind: str, texts: Iterable[str], arguments: Mapping[str, Any]) -> Lengths:
    name = f"{kind}_max_len"
    limit = int(arguments.get(name) or DEFAULT_LENGTHS[name])
    texts, lengths = iter(texts), list[int]()
    while batch := list(itertools.islice(texts, _BATCH)):  # of long texts, encodings are many times as large
        lengths += [len(encoding.ids) for encoding in tokenizer.encode_batch(batch)]
    found = np.array(lengths)
    return Lengths(
        kind=kind,
        median=int(np.median(found)),
        long=int(np.quantile(found, 0.95, method="higher")),
        limit=limit,
        cut=float(np.mean(found > limit)),
    )


def _rows(train_data: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for path in map(Path, train_data):
        for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
            yield from (row for _, row in read_rows(file))


def _first(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    characters = 0
    for row in itertools.islice(rows, _ROWS):
        yield row
        characters += sum(map(len, (row["query"], *row["pos"], *row["neg"])))
        if characters > _CHARACTERS:
            return


def _texts(rows: Iterable[Mapping[str, Any]], kind: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """As FlagEmbedding's data set makes them: with a row's own prompt in the place of an instruction for queries."""
    instruction = arguments.get(f"{kind}_instruction_for_retrieval")
    form = str(arguments.get(f"{kind}_instruction_format") or "{}{}").replace("\\n", "\n")
    for row in rows:
        before = row.get("prompt", instruction) if kind == _QUERY else instruction
        for text in [row["query"]] if kind == _QUERY else (*row["pos"], *row["neg"]):
            yield text if instruction is None else form.format(before, text)
