import json
from pathlib import Path

import pytest

from tuner.data import example
from tuner.data.dataset import prepare
from tuner.data.example import Pair, mine_negatives, split_docstring, write_example

BODY = "Parameters\n----------\nx : array_like\n    " + "Points at which the curve is evaluated. " * 8


def test_a_docstring_is_split_into_summary_and_body_on_one_line_each() -> None:
    pair = split_docstring("Evaluate a smooth curve\nat given points.\n\n" + BODY)
    assert pair is not None
    assert pair.summary == "Evaluate a smooth curve at given points."
    assert pair.body.startswith("Parameters x : array_like Points at which the curve is evaluated.")


def test_a_long_body_ends_with_a_whole_word() -> None:
    pair = split_docstring("Evaluate a smooth curve at given points.\n\n" + "evaluated " * 100)
    assert pair is not None
    assert len(pair.body) <= example.MAX_BODY_CHARACTERS
    assert set(pair.body.split()) == {"evaluated"}


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        "Evaluate a smooth curve at given points.",
        "Evaluate a curve.\n\n" + BODY,
        "Evaluate a smooth curve at given points.\n\nToo short.",
        "Evaluate " * 40 + ".\n\n" + BODY,
        "Points at which the curve is evaluated.\n\n" + BODY,
    ],
)
def test_docstrings_that_make_no_task_are_left_out(docstring: str) -> None:
    assert split_docstring(docstring) is None


def test_negatives_are_similar_but_neither_the_passage_nor_a_copy() -> None:
    groups = [
        f"topic{topic} " * 3 + f"detail{topic}x{number} extra{number}" for topic in range(2) for number in range(80)
    ]
    copy = groups[0] + " again"
    negatives = mine_negatives([*groups, copy])
    assert len(negatives) == 161
    assert all(len(set(found)) == example.NEGATIVES for found in negatives)
    assert copy not in negatives[0]
    assert all(passage not in found for passage, found in zip([*groups, copy], negatives, strict=True))


def test_sources_are_parsed_not_imported(tmp_path: Path) -> None:
    body = BODY.replace("\n", "\n    ")
    source = f'raise SystemExit\ndef curve(x):\n    """Evaluate a smooth curve at given points.\n\n    {body}"""\n'
    (tmp_path / "tests").mkdir()
    for path in (tmp_path / "curves.py", tmp_path / "tests" / "test_curves.py"):
        path.write_text(source, encoding="utf-8")
    (tmp_path / "broken.py").write_text("def", encoding="utf-8")
    assert [type(pair) for pair in example._pairs_below(tmp_path)] == [Pair]


def test_the_example_is_sound_data_and_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "ROWS", {"train": 60, "dev": 40, "test": 50})
    first, second = (write_example(tmp_path / name) for name in ("first", "second"))
    train_data, eval_data = first
    assert train_data.read_bytes() == second[0].read_bytes()
    assert (eval_data / "corpus.jsonl").read_bytes() == (second[1] / "corpus.jsonl").read_bytes()
    dataset = prepare([str(train_data)], folder=tmp_path / "data", eval_data=str(eval_data), seed=42)
    assert dataset.rows == 60
    assert dataset.manifest["eval"]["queries"] == {"dev": 40, "test": 50}
    rows = [json.loads(line) for line in train_data.read_text(encoding="utf-8").splitlines()]
    assert all(len(row["pos"]) == 1 and len(row["neg"]) == example.NEGATIVES for row in rows)
