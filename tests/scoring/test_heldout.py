from pathlib import Path

import pytest

from trainables.scoring.heldout import read_passages, read_qrels, read_queries


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "p1", "title": "West Lake", "text": " in Hangzhou "}\n'
        '{"_id": "p2", "title": "", "text": " plain "}\n\n'
        '{"_id": "p3", "title": null, "text": "西湖"}\n',
        encoding="utf-8",
    )
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "where"}\n{"_id": "q2", "text": "unjudged"}\n')
    (tmp_path / "qrels" / "dev.tsv").write_text('query-id\tcorpus-id\tscore\nq1\tp1\t2\nq1\tp"3\t0\n')
    return tmp_path


def test_title_and_text_are_joined_and_stripped(folder: Path) -> None:
    assert list(read_passages(folder)) == [("p1", "West Lake  in Hangzhou"), ("p2", "plain"), ("p3", "西湖")]


def test_judged_queries_are_read(folder: Path) -> None:
    qrels = read_qrels(folder, "dev")
    assert qrels == {"q1": {"p1": 2, 'p"3': 0}}
    assert read_queries(folder, qrels) == {"q1": "where"}


def test_an_unknown_split_is_refused_with_those_there(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no split 'test' \(splits there: dev\)"):
        read_qrels(folder, "test")


def test_an_empty_split_is_refused(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(ValueError, match="at least one judgement"):
        read_qrels(folder, "test")


def test_a_judged_query_without_text_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"queries\.jsonl: 1 judged queries are missing, e\.g\. 'q9'"):
        read_queries(folder, {"q1": {"p1": 1}, "q9": {"p1": 1}})
