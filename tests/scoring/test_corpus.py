"""Token ids of a corpus on disk: made once, and made anew for whatever would change one of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.support.m3_fixtures import make_model
from trainables.scoring.corpus import Corpus, PassageIds
from trainables.scoring.settings import EncodingSettings

SETTINGS = EncodingSettings(passage_max_len=8)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(make_model(tmp_path / "model"))


def _eval_data(folder: Path, *texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"_id": f"é{9 - number}", "text": text}) + "\n" for number, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(lines))
    return folder


def _forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("tokenised again")


def test_a_corpus_is_tokenised_once_and_mapped(tokenizer: Any, tmp_path: Path) -> None:
    data = _eval_data(tmp_path / "eval", "w1 w2 w3", "w4")
    made = Corpus.cached(tmp_path / "tokens", "rules", data, tokenizer, SETTINGS)
    again = Corpus.cached(tmp_path / "tokens", "rules", data, _forbidden, SETTINGS)
    assert isinstance(again.tokens.ids.base, np.memmap)
    for corpus in (made, again):
        assert corpus.tokens.ids.tolist() == Corpus.read(data, tokenizer, SETTINGS).tokens.ids.tolist()
        assert corpus.tokens.lengths.tolist() == [5, 3]  # with the special tokens
        assert (list(corpus.ids), corpus.positions.tolist()) == (["é8", "é9"], [1, 0])


@pytest.mark.parametrize("change", ["text", "tokenizer", "length", "instruction", "instruction_format"])
def test_whatever_changes_a_token_makes_another_cache(change: str, tokenizer: Any, tmp_path: Path) -> None:
    data = _eval_data(tmp_path / "eval", "w1 w2 w3", "w4")
    asked = replace(SETTINGS, passage_instruction_for_retrieval="w9 ")
    Corpus.cached(tmp_path / "tokens", "rules", data, tokenizer, asked)
    if change == "text":
        _eval_data(data, "w1 w2 w3", "w5")
    rules = "others" if change == "tokenizer" else "rules"
    changed: dict[str, dict[str, Any]] = {
        "length": {"passage_max_len": 7},
        "instruction": {"passage_instruction_for_retrieval": "w8 "},
        "instruction_format": {"passage_instruction_format": "{}: {}"},
    }
    settings = replace(asked, **changed.get(change, {}))
    with pytest.raises(AssertionError, match="tokenised again"):
        Corpus.cached(tmp_path / "tokens", rules, data, _forbidden, settings)


def test_what_is_no_part_of_a_passage_shares_the_cache(tokenizer: Any, tmp_path: Path) -> None:
    data = _eval_data(tmp_path / "eval", "w1 w2 w3")
    Corpus.cached(tmp_path / "tokens", "rules", data, tokenizer, SETTINGS)
    other = replace(SETTINGS, query_max_len=9, sentence_pooling_method="mean", precision="float16")
    Corpus.cached(tmp_path / "tokens", "rules", data, _forbidden, other)


def test_a_tokenisation_that_was_broken_off_leaves_no_cache(tokenizer: Any, tmp_path: Path) -> None:
    data = _eval_data(tmp_path / "eval", "w1 w2 w3")
    with pytest.raises(AssertionError):
        Corpus.cached(tmp_path / "tokens", "rules", data, _forbidden, SETTINGS)
    assert Corpus.cached(tmp_path / "tokens", "rules", data, tokenizer, SETTINGS).tokens.lengths.tolist() == [5]


def test_ids_are_a_sequence_of_text() -> None:
    ids = PassageIds.of(["", "a", "ab", "é"])
    assert (len(ids), ids[0], ids[3], ids[1:3]) == (4, "", "é", ["a", "ab"])
    with pytest.raises(IndexError):
        ids[4]
