import json
from pathlib import Path

import pytest

from tuner.data.beir import HEADER, read, write
from tuner.data.findings import Findings

HEAD = "\t".join(HEADER) + "\n"
FILES = {
    "corpus.jsonl": '{"_id": "p1", "title": "西湖", "text": "位于杭州"}\n{"_id": "p2", "text": "a lake"}\n',
    "queries.jsonl": "".join(
        f'{{"_id": "{key}", "text": "{text}"}}\n'
        for key, text in (("q1", "西湖在哪里"), ("q2", "a query"), ("q3", "unused"))
    ),
    "qrels/dev.tsv": HEAD + "q1\tp1\t2\nq1\tp2\t0\n",
    "qrels/test.tsv": HEAD + "q2\tp2\t1\n",
}


def lay(folder: Path, **changes: str | None) -> Path:
    """Writes a sound BEIR folder but for the files named by their stems, which get other text or are left out."""
    (folder / "qrels").mkdir(parents=True)
    for name, sound in FILES.items():
        text = changes.get(Path(name).stem, sound)
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def rules(folder: Path) -> list[tuple[str, int | None]]:
    findings = Findings()
    read(folder, findings)
    return [(finding.rule, finding.row) for finding in findings.all()]


def test_a_folder_survives_reading_and_writing(tmp_path: Path) -> None:
    findings = Findings()
    write(read(lay(tmp_path / "given"), findings), tmp_path / "written")
    assert findings.all() == []
    again = read(tmp_path / "written", findings)
    assert list(again.corpus) == [
        {"_id": "p1", "title": "西湖", "text": "位于杭州"},
        {"_id": "p2", "title": "", "text": "a lake"},
    ]
    assert again.queries == {"q1": "西湖在哪里", "q2": "a query"}
    assert again.qrels == {"dev": {"q1": {"p1": 2, "p2": 0}}, "test": {"q2": {"p2": 1}}}
    assert (
        json.loads((tmp_path / "written" / "queries.jsonl").read_text(encoding="utf-8").splitlines()[0])["_id"] == "q1"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"test": None}, [("BEIR file missing", None)]),
        ({"corpus": FILES["corpus.jsonl"] + "{\n"}, [("JSON", 3)]),
        ({"corpus": FILES["corpus.jsonl"] * 2}, [("BEIR id repeated", 3), ("BEIR id repeated", 4)]),
        ({"queries": FILES["queries.jsonl"] + '{"_id": 4, "text": "x"}\n'}, [("BEIR row", 4)]),
        ({"queries": FILES["queries.jsonl"] + '{"_id": "a\\tb", "text": "x"}\n'}, [("BEIR id", 4)]),
        ({"dev": "q1\tp1\t1\n"}, [("qrels header", 1)]),
        ({"dev": ""}, [("qrels header", 1)]),
        ({"dev": HEAD}, [("qrels empty", None)]),
        ({"dev": FILES["qrels/dev.tsv"] + "q9\tp1\t1\n"}, [("qrels query", 4)]),
        ({"dev": FILES["qrels/dev.tsv"] + "q1\tp9\t1\n"}, [("qrels passage", 4)]),
        ({"dev": FILES["qrels/dev.tsv"] + "q1\tp1\n"}, [("qrels row", 4)]),
        ({"dev": FILES["qrels/dev.tsv"] + "q1\tp1\t0.5\n"}, [("qrels row", 4)]),
        ({"dev": FILES["qrels/dev.tsv"] + "q3\tp1\t0\n"}, [("qrels irrelevant", None)]),
        ({"test": HEAD + "q1\tp1\t1\n"}, [("query in dev and test", None)]),
    ],
)
def test_each_fault_is_found_with_its_row(
    tmp_path: Path, changes: dict[str, str | None], expected: list[tuple[str, int | None]]
) -> None:
    assert rules(lay(tmp_path / "given", **changes)) == expected


def test_all_missing_files_are_told_together(tmp_path: Path) -> None:
    assert len(rules(tmp_path)) == 4


def test_negative_judgements_are_not_relevant(tmp_path: Path) -> None:
    lay(tmp_path, dev=HEAD + "q1\tp1\t2\nq1\tp2\t-2\n")
    assert rules(tmp_path) == []
    assert read(tmp_path, Findings()).qrels["dev"] == {"q1": {"p1": 2, "p2": 0}}


def test_half_a_surrogate_pair_is_told(tmp_path: Path) -> None:
    lay(tmp_path, corpus=FILES["corpus.jsonl"] + '{"_id": "p3", "text": "half \\ud83d"}\n')
    assert rules(tmp_path) == [("BEIR surrogate", 3)]
