"""The formats that people bring are read to the same rows."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuner.data.dataset import check, load, prepare
from tuner.data.findings import Findings
from tuner.data.rows import Fault
from tuner.data.sources import find_source, read_rows, stem_of

ROWS: list[dict[str, Any]] = [
    {"query": f"query {number}", "pos": [f"answer {number}"], "neg": ["nothing", "无关"]} for number in range(3)
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def _parquet(path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist([{**row, "extra": 1} for row in ROWS]), path)


def _saved(path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(ROWS[::-1]).sort("query").save_to_disk(str(path))  # with an indices file, as after a shuffle


def _saved_splits(path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}).save_to_disk(str(path))


FORMATS: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": lambda path: path.write_bytes(LINES),
    "rows.JSONL": lambda path: path.write_bytes(b"\xef\xbb\xbf\n" + LINES),
    "rows.ndjson": lambda path: path.write_bytes(LINES),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "rows.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "rows.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "rows.json": lambda path: path.write_text("\n \n" + json.dumps(ROWS, indent=1)),
    "object.json": lambda path: path.write_text(json.dumps({"version": 2, "data": ROWS}, indent=2)),
    "object-on-one-line.json": lambda path: path.write_text(json.dumps({"version": 2, "data": ROWS}) + "\n"),
    "object-on-one-line.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps({"data": ROWS}).encode())),
    "array.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "rows.parquet": _parquet,
    "saved": _saved,
    "splits": _saved_splits,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_same_rows(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / name)
    source = find_source(tmp_path / name, findings := Findings())
    assert source is not None
    rows = [row for file in source.files for _, row in read_rows(file)]
    assert [{key: row[key] for key in ("query", "pos", "neg")} for row in rows] == ROWS
    assert findings.counts() == (0, 1 if name == "splits" else 0)


def test_rows_that_are_whole_objects_on_several_lines_are_one_row(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(ROWS[0], indent=2))
    assert list(read_rows(tmp_path / "one.json")) == [(1, ROWS[0])]


def test_a_first_line_that_holds_a_list_makes_no_object_of_several_lines(tmp_path: Path) -> None:
    first = {"passages": [{"text": "a"}]}
    (tmp_path / "rows.jsonl").write_bytes(json.dumps(first).encode() + b"\n" + LINES)
    assert list(read_rows(tmp_path / "rows.jsonl")) == [(1, first), *enumerate(ROWS, start=2)]


def test_broken_lines_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"query": \n\n' + LINES)
    (first, fault), *rest = read_rows(tmp_path / "rows.jsonl")
    assert (first, fault.rule, [number for number, _ in rest]) == (1, "JSON", [3, 4, 5])


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("rows.jsonl", LINES.decode().encode("utf-16"), "UTF-8"),
        ("rows.jsonl.gz", gzip.compress(LINES, mtime=0)[:-20], "unreadable"),
        ("rows.jsonl.gz", LINES, "unreadable"),
        ("rows.jsonl.gz", gzip.compress(LINES, mtime=0)[:10] + b"\xff" * 20, "unreadable"),
        ("rows.jsonl.xz", LINES, "unreadable"),
        ("rows.parquet", LINES, "Parquet"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_told_once(
    name: str, content: bytes, rule: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    faults = [row.rule for _, row in read_rows(tmp_path / name) if isinstance(row, Fault)]
    assert faults == [rule]


def test_files_of_other_systems_are_passed_over_in_silence(tmp_path: Path) -> None:
    for name in ("._part.jsonl", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "part.jsonl").write_bytes(LINES)
    source = find_source(tmp_path, findings := Findings())
    assert source is not None
    assert [file.name for file in source.files] == ["part.jsonl"]
    assert findings.all() == []


def test_a_name_without_its_format() -> None:
    names = ("rows.jsonl.gz", "rows.parquet", "a.b.json", "notes.txt")
    assert [stem_of(Path(name)) for name in names] == ["rows", "rows", "a.b", "notes.txt"]


def test_another_format_is_refused_with_those_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("query,pos\n")
    (finding,) = check([str(tmp_path / "rows.csv")])
    assert "extension '.csv' is not read: JSON Lines" in finding.message
    (tmp_path / "rows.parquet.gz").write_bytes(b"")
    (finding,) = check([str(tmp_path / "rows.parquet.gz")])
    assert "JSON Lines and JSON arrays (also as .gz, .bz2 or .xz), Parquet and folders" in finding.message


def test_a_beir_folder_is_no_training_data_and_told_once(tmp_path: Path) -> None:
    for name in ("corpus.jsonl", "queries.jsonl"):
        (tmp_path / name).write_text('{"_id": "1", "text": "a"}\n' * 3)
    (finding,) = check([str(tmp_path)])
    assert "give it to --eval_data" in finding.message


def test_what_is_written_has_the_same_fields_in_every_row(tmp_path: Path) -> None:
    """`datasets` takes a column's type from the first 10 MB of a file."""
    rows: list[dict[str, Any]] = [{"query": f"q {n}", "pos": [f"p {n}"], "neg": [f"n {n}"]} for n in range(200)]
    for number, row in enumerate(rows):
        row |= {"pos_scores": [1 if number < 150 else 0.5], "neg_scores": [0]}
        row |= {"prompt": "find: "} if number == 199 else {}
        row |= {"type": "normal"} if number > 3 else {}
    (tmp_path / "late.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = prepare([str(tmp_path / "late.jsonl")], folder=tmp_path / "data", eval_data=None, seed=1)
    written = [json.loads(line) for line in Path(data.train_data[0]).read_text().splitlines()]
    assert {tuple(row) for row in written} == {("query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type")}
    assert {type(row["pos_scores"][0]) for row in written} == {float}
    assert {row["prompt"] for row in written} <= {"", "find: "}
    assert {row["type"] for row in written} == {"normal"}
    assert data.has_scores
    assert load(tmp_path / "data").hash == data.hash


def test_two_types_in_a_file_are_refused(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "type": "normal"}, {**ROWS[1], "type": "only_1neg"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [finding.rule for finding in check([str(tmp_path / "rows.jsonl")]) if finding.fatal] == ["other type"]
