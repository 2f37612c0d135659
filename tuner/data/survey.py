"""One pass over the training data that checks every row and keeps only fingerprints and counts of it."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tuner.data.findings import Findings
from tuner.data.rows import Fault, row_faults
from tuner.data.sources import Source, find_source, read_rows
from tuner.data.splits import fingerprint

OPTIONAL_FIELDS = {
    "pos_scores": "--knowledge_distillation needs them in every row",
    "neg_scores": "--knowledge_distillation needs them in every row",
    "prompt": "the other rows get an empty one",
    "type": "the other rows get the one that the rest of their file has",
}
"""Fields that all rows should have or none, and what happens otherwise."""


class _Seen(NamedTuple):
    row: int
    content: int


@dataclass(kw_only=True)
class Survey:
    """What is known of the training data after one pass; rows are counted through all the files."""

    findings: Findings = field(default_factory=Findings)
    sources: list[Source] = field(default_factory=list)

    queries: list[bytes] = field(default_factory=list)
    """Fingerprint of each row's query."""

    positives: list[tuple[bytes, ...]] = field(default_factory=list)
    """Fingerprints of each row's positive passages."""

    negatives: list[int] = field(default_factory=list)
    """Number of each row's negatives."""

    files: list[tuple[Path, int]] = field(default_factory=list)
    """Each file read, and the number of its first row."""

    lines: list[int] = field(default_factory=list)
    """Line of each row in its file."""

    query_lengths: Counter[int] = field(default_factory=Counter)
    """How many queries have that many characters."""

    passage_lengths: Counter[int] = field(default_factory=Counter)
    """How many passages, positive or negative, have that many characters."""

    optional: Counter[str] = field(default_factory=Counter)
    """How many rows have each of `OPTIONAL_FIELDS`."""

    @property
    def has_scores(self) -> bool:
        """Whether every row has a teacher's scores for all its passages."""
        return all(self.optional[name] == len(self.queries) for name in ("pos_scores", "neg_scores"))

    def place(self, row: int) -> tuple[str, int]:
        """Returns the file, as it was given, and the line of a row."""
        path, _ = self.files[bisect_right(self.files, row, key=lambda file: file[1]) - 1]
        return str(path), self.lines[row]


def survey(train_data: Sequence[str], *, to_be_mended: Collection[str] = ()) -> Survey:
    """Reads all training data once and checks every row.

    Args:
        train_data: Files and folders, as FlagEmbedding's `--train_data` takes them.
        to_be_mended: Rules that rows may break, because they are read to be mended.

    Returns:
        The findings, and fingerprints of the rows that have no fatal one.
    """
    result = Survey()
    seen: dict[bytes, _Seen] = {}
    for path in train_data:
        source = find_source(Path(path), result.findings)
        if source:
            result.sources.append(source)
            for file in source.files:
                _survey_file(file, result, seen, to_be_mended)
    if not result.queries and not result.findings.counts()[0]:
        result.findings.add(" ".join(train_data), None, Fault("no rows", "no training data in --train_data"))
    _find_partial_fields(result)
    return result


def rows_of(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yields the rows of checked files one after the other."""
    for path in files:
        yield from (row for _, row in read_rows(path))


def _survey_file(path: Path, result: Survey, seen: dict[bytes, _Seen], to_be_mended: Collection[str]) -> None:
    start = len(result.queries)
    result.files.append((path, start))
    empty, kind = True, None
    for line, row in read_rows(path):
        empty = False
        faults = [fault for fault in row_faults(row) if fault.rule not in to_be_mended]
        if not faults and (own := row.get("type")) is not None:
            kind = own if kind is None else kind
            faults = [] if own == kind else [_other_type(own, kind)]
        for fault in faults:
            result.findings.add(str(path), line, fault)
        if not faults:
            _add_row(row, line, result)
            _find_repeated(row, result, seen)
    if empty:
        result.findings.add(str(path), None, Fault("empty file", "the file has no rows"), fatal=False)


def _other_type(own: str, first: str) -> Fault:
    message = (
        f"'type' is {_quoted(own)}, but the file's first is {_quoted(first)}; FlagEmbedding trains a file as one type"
    )
    return Fault("other type", f"{message}, so put the rows into a file of their own")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _add_row(row: dict[str, Any], line: int, result: Survey) -> None:
    result.queries.append(fingerprint(row["query"]))
    result.positives.append(tuple(fingerprint(text) for text in row["pos"]))
    result.negatives.append(len(row.get("neg") or ()))
    result.lines.append(line)
    result.query_lengths[len(row["query"])] += 1
    result.passage_lengths.update(len(text) for text in [*row["pos"], *(row.get("neg") or ())])
    result.optional.update(name for name in OPTIONAL_FIELDS if row.get(name) is not None)


def _find_repeated(row: dict[str, Any], result: Survey, seen: dict[bytes, _Seen]) -> None:
    """Several positives for one query are sound, even spread over rows; the same row again is most often not meant."""
    number = len(result.queries) - 1
    content = hash((row["query"], tuple(row["pos"]), tuple(row.get("neg") or ())))
    first = seen.setdefault(result.queries[number], _Seen(number, content))
    if first.row == number:
        return
    file, line = result.place(number)
    first_file, first_line = result.place(first.row)
    where = f"row {first_line}" if first_file == file else f"{Path(first_file).name}:{first_line}"
    same = content == first.content
    fault = (
        Fault("repeated row", f"repeats {where} exactly, so it counts twice in training")
        if same
        else Fault("repeated query", f"has the query of {where}; held out, the query gets the positives of both")
    )
    result.findings.add(file, line, fault, fatal=False)


def _find_partial_fields(result: Survey) -> None:
    total = len(result.queries)
    for name, consequence in OPTIONAL_FIELDS.items():
        if 0 < result.optional[name] < total:
            message = f"'{name}' stands in {result.optional[name]:,} of {total:,} rows; {consequence}"
            result.findings.add(str(result.files[0][0]), None, Fault(f"partial {name}", message), fatal=False)
