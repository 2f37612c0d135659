"""The token cache gives what the tokenizer gives, and is made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.m3_fixtures import make_tokenizer
from trainables.m3.tokens import Tokeniser, content_hash, fingerprint

TEXTS = ["w1 w2", "w3", "w1 w2", "w4 w5 w6 w7 w8 w9", ""]


def expected(texts: list[str], max_length: int = 6) -> list[list[int]]:
    rows: list[list[int]] = make_tokenizer()(texts, truncation=True, max_length=max_length)["input_ids"]
    return rows


def test_cached_and_unknown_texts_equal_the_tokenizers(tmp_path: Path) -> None:
    cached = Tokeniser(make_tokenizer(), 6).cached(tmp_path, "rows", TEXTS)
    asked = ["w3", "never seen w1", *TEXTS]
    assert [ids.tolist() for ids in cached(asked)] == expected(asked)
    assert cached.cache is not None
    assert cached.cache.get(["never seen w1"]) == [None]
    assert cached.cache.vocabulary.tolist() == sorted({token for row in expected(TEXTS) for token in row})


def test_a_second_process_reads_no_text(tmp_path: Path) -> None:
    def unread() -> Iterator[str]:
        pytest.fail("the texts were read again")
        yield ""

    Tokeniser(make_tokenizer(), 6).cached(tmp_path, "rows", TEXTS)
    again = Tokeniser(make_tokenizer(), 6).cached(tmp_path, "rows", unread())
    assert [ids.tolist() for ids in again(TEXTS)] == expected(TEXTS)


def test_other_lengths_sources_and_tokenizers_have_their_own_cache(tmp_path: Path) -> None:
    Tokeniser(make_tokenizer(), 6).cached(tmp_path, "rows", TEXTS)
    shorter = Tokeniser(make_tokenizer(), 4).cached(tmp_path, "rows", TEXTS)
    assert [ids.tolist() for ids in shorter(TEXTS)] == expected(TEXTS, 4)
    Tokeniser(make_tokenizer(), 6).cached(tmp_path, "other rows", TEXTS)
    Tokeniser(make_tokenizer(["w1"]), 6).cached(tmp_path, "rows", TEXTS)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 4


def test_fingerprint_is_of_what_the_tokenizer_does() -> None:
    used = make_tokenizer()
    used(["w1 w2 w3"], truncation=True, max_length=2)
    assert fingerprint(used) == fingerprint(make_tokenizer())
    assert fingerprint(used) != fingerprint(make_tokenizer(["w2", "w1"]))


def test_content_hash(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    one.write_text("rows")
    same.write_text("rows")
    other.write_text("ROWS")
    assert content_hash([str(one)]) == content_hash([str(same)]) != content_hash([str(other)])
