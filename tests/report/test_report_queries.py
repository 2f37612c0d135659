"""Texts and ranks of the queries that moved, in a corpus of four passages."""

import json
from pathlib import Path

from tuner.report.queries import moved_queries
from tuner.verdict.result import MovedQueries, MovedQuery


def test_passages_ranks_and_shortening(tmp_path: Path) -> None:
    passages = [("a", "", "first"), ("b", "Title", "second"), ("c", "", "long " * 100), ("d", "", "fourth")]
    rows = (json.dumps({"_id": name, "title": title, "text": text}) for name, title, text in passages)
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows) + "\n\n")
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tb\t1\nq1\ta\t0\nq2\td\t1\n")
    rankings = {"retrieved_before": ["a", "c", "d"], "retrieved_after": ["b", "a", "c", "d"]}
    row = MovedQuery(id="q1", text="?", before=0.0, after=1.0, **rankings)
    moved = moved_queries(tmp_path, MovedQueries(gained=[row]))
    assert moved["lost"] == []
    (gained,) = moved["gained"]
    # b alone is relevant to q1 (a is judged 0): not found before, first after.
    assert (gained["before_rank"], gained["after_rank"]) == (None, 1)
    assert gained["after_passages"][:2] == [
        {"text": "Title second", "relevant": True},
        {"text": "first", "relevant": False},
    ]
    assert len(gained["after_passages"]) == 3
    assert gained["before_passages"][1]["text"] == ("long " * 52).rstrip() + " …"
