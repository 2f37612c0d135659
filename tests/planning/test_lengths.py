"""How many tokens texts have, with a tokenizer of one token a word and one more at each end."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tuner.planning.lengths import say_lengths

ROWS: list[dict[str, Any]] = [
    {"query": "one two", "pos": ["one two three"], "neg": ["one", "one two"]},
    {"query": "one two three four", "pos": ["one two three four five six"], "neg": []},
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.enable_truncation(4)  # as many models' files have it
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(folder: Path) -> str:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def test_texts_are_counted_whole_and_with_their_instruction(model: Path) -> None:
    """Queries: 3 + 2 and 5 + 2 tokens with `query :`; passages: 5, 3, 4, 8."""
    arguments = {"query_instruction_for_retrieval": "query ", "query_max_len": 5, "passage_max_len": 4}
    (line,) = say_lengths(model, [write(model)], arguments)
    assert line == (
        "queries have 6 tokens (95% at most 7), passages 4 (95% at most 8); cut are 50% at --query_max_len 5 and 50% "
        "at --passage_max_len 4 (medians, of the first 2 rows)"
    )


def test_folders_are_read_and_defaults_are_upstreams(model: Path) -> None:
    (model / "data").mkdir()
    write(model / "data")
    (line,) = say_lengths(model, [str(model / "data")], {})
    assert "0% at --query_max_len 32 and 0% at --passage_max_len 128" in line


def test_without_a_file_that_says_how_to_count_nothing_is_said(tmp_path: Path) -> None:
    data = write(tmp_path)
    assert list(say_lengths(tmp_path, [data], {})) == []
    (tmp_path / "tokenizer.json").write_text("{}")
    assert list(say_lengths(tmp_path, [data], {})) == []


def test_without_rows_nothing_is_said(model: Path) -> None:
    assert list(say_lengths(model, [str(model)], {})) == []


def test_a_rows_own_prompt_takes_the_instructions_place(model: Path) -> None:
    path = model / "train.jsonl"
    path.write_text(json.dumps(ROWS[0] | {"prompt": "a b c"}) + "\n")
    (plain,) = say_lengths(model, [str(path)], {})
    assert plain.startswith("queries have 4 tokens (95% at most 4), ")
    given = {"query_instruction_for_retrieval": "x", "query_instruction_format": "{} then {}"}
    (line,) = say_lengths(model, [str(path)], given)
    assert line.startswith("queries have 8 tokens (95% at most 8), ")


def test_of_long_texts_fewer_rows_are_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.planning.lengths._CHARACTERS", 20)
    (line,) = say_lengths(model, [write(model)], {})
    assert line.endswith("(medians, of the first 1 row)")
