import json
from pathlib import Path
from typing import Any

from tuner.data.survey import Survey, survey


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def row(query: str, pos: str = "一个段落", **fields: Any) -> dict[str, Any]:
    return {"query": query, "pos": [pos], "neg": ["另一个段落"], **fields}


def warnings(surveyed: Survey) -> list[str]:
    return [str(finding).partition("warning: ")[2] for finding in surveyed.findings.all()]


def test_only_sound_rows_are_kept_and_each_knows_its_place(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", row("一"), row(""), row("二"))
    second = write(tmp_path / "b.jsonl", row("三"))
    surveyed = survey([first, second])
    assert [surveyed.place(number) for number in range(3)] == [(first, 1), (first, 3), (second, 1)]
    assert surveyed.negatives == [1, 1, 1]
    assert dict(surveyed.query_lengths) == {1: 3}
    assert dict(surveyed.passage_lengths) == {4: 3, 5: 3}


def test_a_repeated_query_and_a_repeated_row_are_told_apart(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", row("一"), row("一 ", "第二个段落"), row("一"))
    second = write(tmp_path / "b.jsonl", row("一"))
    assert [line.partition(",")[0].partition(";")[0] for line in warnings(survey([first, second]))] == [
        "has the query of row 1",
        "repeats row 1 exactly",
        "repeats a.jsonl:1 exactly",
    ]


def test_scores_must_stand_in_every_row_to_count(tmp_path: Path) -> None:
    scored = row("一", pos_scores=[1.0], neg_scores=[0.5])
    assert survey([write(tmp_path / "a.jsonl", scored)]).has_scores
    partly = survey([write(tmp_path / "b.jsonl", scored, row("二", pos_scores=[1.0]))])
    assert not partly.has_scores
    assert warnings(partly) == ["'neg_scores' stands in 1 of 2 rows; --knowledge_distillation needs them in every row"]


def test_data_without_any_row_is_fatal(tmp_path: Path) -> None:
    surveyed = survey([write(tmp_path / "a.jsonl")])
    assert [(finding.rule, finding.fatal) for finding in surveyed.findings.all()] == [
        ("empty file", False),
        ("no rows", True),
    ]
