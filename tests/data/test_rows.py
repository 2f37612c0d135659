import json
from pathlib import Path
from typing import Any

import pytest

from tuner.data.findings import Findings
from tuner.data.rows import Fault, row_faults
from tuner.data.sources import find_source, read_rows
from tuner.errors import RequestError

SOUND = {"query": "西湖在哪里", "pos": ["西湖位于杭州"], "neg": ["太湖位于苏州", "a lake"]}


def rules(**changes: Any) -> list[str]:
    return [fault.rule for fault in row_faults({**SOUND, **changes})]


def test_sound_rows_have_no_faults() -> None:
    assert rules() == []
    assert rules(pos_scores=[0.5], neg_scores=[1, -2.5], prompt="为这个句子生成表示：", type="normal", id=7) == []
    assert rules(pos_scores=None, neg_scores=None, prompt=None) == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"query": None}, "query missing"),
        ({"query": " \n"}, "query empty"),
        ({"query": 7}, "query type"),
        ({"query": "\ud83d"}, "query surrogate"),
        ({"pos": None}, "pos missing"),
        ({"pos": []}, "pos empty"),
        ({"pos": "西湖位于杭州"}, "pos type"),
        ({"pos": ["西湖位于杭州", ""]}, "pos item empty"),
        ({"pos": ["西湖位于杭州", None]}, "pos item type"),
        ({"neg": None}, "neg missing"),
        ({"neg": []}, "neg empty"),
        ({"neg": {"text": "x"}}, "neg type"),
        ({"neg": ["西湖位于杭州 ", "a lake"]}, "positive among negatives"),
        ({"pos_scores": [0.5, 0.5]}, "pos_scores length"),
        ({"neg_scores": [0.5]}, "neg_scores length"),
        ({"neg_scores": 0.5}, "neg_scores type"),
        ({"neg_scores": [0.5, "high"]}, "neg_scores item type"),
        ({"neg_scores": [0.5, float("nan")]}, "neg_scores item type"),
        ({"neg_scores": [0.5, True]}, "neg_scores item type"),
        ({"pos_scores": [10**400]}, "pos_scores item type"),
        ({"pos_scores": 10**400}, "pos_scores type"),
        ({"prompt": 3}, "prompt type"),
        ({"type": ["normal"]}, "type type"),
    ],
)
def test_each_broken_rule_is_found_alone(changes: dict[str, Any], rule: str) -> None:
    assert rules(**changes) == [rule]


def test_all_faults_of_one_row_are_told() -> None:
    assert rules(query="", pos=[], neg=[]) == ["query empty", "pos empty", "neg empty"]


@pytest.mark.parametrize(("row", "kind"), [(None, "null"), ([1], "a list"), ("text", "a string"), (3, "the number 3")])
def test_a_row_that_is_no_object_says_what_it_is(row: Any, kind: str) -> None:
    (fault,) = row_faults(row)
    assert fault.rule == "not an object"
    assert fault.message.endswith(kind)


def test_empty_negatives_name_the_remedy() -> None:
    (fault,) = row_faults({**SOUND, "neg": []})
    assert "python -m tuner.data mine ROWS --to FILE" in fault.message


def test_blank_lines_keep_the_numbers_of_the_lines_and_a_mark_is_passed_over(tmp_path: Path) -> None:
    line = json.dumps(SOUND, ensure_ascii=False).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line)
    assert list(read_rows(path)) == [(1, SOUND), (4, SOUND)]


def test_a_json_array_is_read_by_element(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([SOUND, 3], indent=2), encoding="utf-8")
    assert list(read_rows(path)) == [(1, SOUND), (2, 3)]


@pytest.mark.parametrize(
    ("line", "rule", "message"),
    [
        (b'{"query": "\xff"}', "UTF-8", "0xff at position 12"),
        (b'{"query": ', "JSON", "at column"),
        (b'{"query": ' + b"9" * 5000 + b"}", "JSON", "digits"),
        (b"{" + b'"a":[' * 100_000, "JSON", "not"),
    ],
)
def test_undecodable_lines_are_faults(tmp_path: Path, line: bytes, rule: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line + b"\n")
    ((number, fault),) = read_rows(path)
    assert number == 1
    assert isinstance(fault, Fault)
    assert fault.rule == rule
    assert message in fault.message


def test_a_folder_gives_its_data_files_sorted_and_tells_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "trainset_no_in_batch_neg"
    folder.mkdir()
    for name in ("b.jsonl", "a.json", "notes.txt"):
        (folder / name).touch()
    findings = Findings()
    source = find_source(folder, findings)
    assert source is not None
    assert [path.name for path in source.files] == ["a.json", "b.jsonl"]
    assert source.no_in_batch_neg
    (skipped,) = findings.all()
    assert skipped.file.endswith("notes.txt")
    assert not skipped.fatal


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a_no_in_batch_neg.jsonl", True), ("no_in_batch_neg.v2.jsonl", False), ("a.jsonl", False)],
)
def test_a_file_says_by_its_stem_that_it_has_no_in_batch_negatives(tmp_path: Path, name: str, expected: bool) -> None:
    (tmp_path / name).touch()
    source = find_source(tmp_path / name, Findings())
    assert source is not None
    assert source.no_in_batch_neg is expected


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("absent.jsonl", "no such path"),
        ("x" * 300, "no such path"),
        ("rows.txt", "other extension"),
        ("empty", "empty folder"),
    ],
)
def test_a_source_without_data_is_fatal(tmp_path: Path, name: str, rule: str) -> None:
    (tmp_path / "rows.txt").touch()
    (tmp_path / "empty").mkdir()
    findings = Findings()
    assert find_source(tmp_path / name, findings) is None
    assert [(finding.rule, finding.fatal) for finding in findings.all()] == [(rule, True)]


def test_a_number_beyond_every_float_is_told_with_its_row_and_not_in_full(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({**SOUND, "pos_scores": [10**400], "neg_scores": [1, 10**400]}))
    ((number, row),) = read_rows(tmp_path / "rows.jsonl")
    assert number == 1
    assert [len(fault.message) < 120 for fault in row_faults(row)] == [True, True]
    assert len(next(row_faults(10**400)).message) < 160


@pytest.mark.parametrize("text", ["\x1b]0;title\x07 ", "\x1b[2J", "\x9b2J", "\u202egnp.exe", "\x1b]52;c;cHduZWQ=\x07"])
def test_no_text_of_a_row_and_no_name_of_a_file_steers_a_terminal(text: str) -> None:
    findings = Findings()
    for fault in row_faults({**SOUND, "pos": [text], "neg": [text]}):
        findings.add(f"{text}.jsonl", 1, fault)
    (line,) = map(str, findings.all())
    assert "is in 'pos' and in 'neg'" in line
    assert line.isprintable()
    (told,) = RequestError([f"{text}: no such file"]).findings
    assert told.isprintable()


def test_texts_of_every_script_are_shown_as_they_are() -> None:
    findings = Findings()
    findings.add("数据 ریال.jsonl", 1, Fault("x", "'西湖\u3000位于杭州 👩\u200d💻'\tis odd"))
    assert str(findings.all()[0]) == "数据 ریال.jsonl:1: '西湖\u3000位于杭州 👩\u200d💻'\tis odd"
