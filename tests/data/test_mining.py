"""Negatives by a tiny model to which texts are near that share words."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import mine_hard_negatives
from transformers import AutoModel, XLMRobertaConfig, XLMRobertaForSequenceClassification, set_seed

from tests.support.m3_fixtures import make_eval, make_model, make_tokenizer, text
from trainables import mining as embedding
from tuner.data.command_line import main
from tuner.data.dataset import prepare
from tuner.data.mining.mine import mine
from tuner.data.mining.request import Mined, Mining
from tuner.data.mining.rule import Rule
from tuner.data.splits import fingerprint
from tuner.data.survey import survey
from tuner.errors import RequestError

CANDIDATES = [("a", 0.99), ("b", 0.9), ("c", 0.7), ("d", 0.5), ("e", 0.3)]


@pytest.mark.parametrize(
    ("rule", "positives", "chosen"),
    [
        (Rule(num_negatives=2), [1.0], "bc"),  # 0.99 > 1 - 0.05
        (Rule(num_negatives=2), [1.0, 0.8], "cd"),  # the least positive counts: 0.9 > 0.8 - 0.04
        (Rule(num_negatives=2, range_min=1), [1.0], "cd"),
        (Rule(num_negatives=9, relative_margin=None), [0.1], "abcde"),
        (Rule(num_negatives=9, relative_margin=None, absolute_margin=0.3), [1.0], "cde"),
        (Rule(num_negatives=9, max_score=0.6), [1.0], "de"),
        (Rule(num_negatives=9, min_score=0.6), [1.0], "bc"),
        (Rule(num_negatives=9), [-1.0], ""),  # a twentieth below -1 is -1.05
        (
            Rule(num_negatives=3, sampling_strategy="random", relative_margin=None),
            [1.0],
            "abe",
        ),  # Random(1) draws 1, 0 and 4
    ],
)
def test_a_rule_takes_the_nearest_that_are_no_positives(rule: Rule, positives: list[float], chosen: str) -> None:
    taken = rule.choose(CANDIDATES, rule.highest(positives), Random(1))
    assert "".join(passage for passage, _ in taken) == chosen


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_bag_of_words(tmp_path_factory.mktemp("model"))


def make_bag_of_words(folder: Path, bert: bool = False) -> str:
    """Writes an encoder whose layers hand on what they get, so that a text's embedding is the mean of its words'."""
    make_model(folder, bert=bert)
    model = AutoModel.from_pretrained(folder)
    set_seed(0)
    with torch.no_grad():
        embeddings = model.embeddings
        embeddings.word_embeddings.weight.normal_()
        embeddings.word_embeddings.weight[:4] = 0  # of the tokens around a text
        embeddings.position_embeddings.weight.zero_()
        embeddings.token_type_embeddings.weight.zero_()
        for layer in model.encoder.layer:
            layer.attention.output.dense.weight.zero_()
            layer.output.dense.weight.zero_()
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_cross_encoder(tmp_path_factory.mktemp("teacher"), labels=1)


def make_cross_encoder(folder: Path, labels: int) -> str:
    set_seed(1)
    tokenizer = make_tokenizer()
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    shape |= {"max_position_embeddings": 130, "num_labels": labels}
    config = XLMRobertaConfig(vocab_size=len(tokenizer), **shape)
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_pairs(count: int = 120) -> list[dict[str, Any]]:
    draw = random.Random(3)
    queries = [f"{text(draw, 4)} w{number % 60} w{number // 60}" for number in range(count)]
    return [{"query": query, "pos": [f"{query} {text(draw, 12)}"]} for query in queries]


def asked(folder: Path, rows: Sequence[dict[str, Any]], model: str, **changes: Any) -> Mining:
    folder.mkdir(exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rule = Rule(**{name: changes.pop(name) for name in list(changes) if name in Rule.__dataclass_fields__})
    return Mining(rows=str(folder / "pairs.jsonl"), to=folder / "mined.jsonl", model=model, rule=rule, **changes)


def run(mining: Mining) -> tuple[Mined, list[dict[str, Any]]]:
    mined = mine(mining, lambda _: None)
    return mined, [json.loads(line) for line in mining.to.read_text("utf-8").splitlines()]


@pytest.fixture
def beir(tmp_path: Path) -> str:
    """Held-out queries for passages that no row has."""
    return str(make_eval(tmp_path / "beir"))


def test_negatives_are_the_librarys_own(tmp_path: Path, model: str, beir: str) -> None:
    pairs = make_pairs(40)
    mined, rows = run(asked(tmp_path, pairs, model, eval_data=beir, num_negatives=3, range_max=35))
    assert (mined.rows, mined.mined_rows, mined.kept_rows, mined.negatives) == (40, 40, 0, 120)
    found = mine_hard_negatives(
        Dataset.from_list([{"query": row["query"], "positive": row["pos"][0]} for row in pairs]),
        SentenceTransformer(model),
        relative_margin=0.05,
        num_negatives=3,
        range_max=35,
        output_format="n-tuple",
        verbose=False,
    )
    expected = {row["query"]: [row[f"negative_{number}"] for number in (1, 2, 3)] for row in found}
    full = {row["query"]: row["neg"] for row in rows if row["query"] in expected}
    assert len(expected) >= 10
    assert full == expected
    assert mined.drawn_rows == 40 - len(expected)  # the library leaves such rows out
    assert survey([str(tmp_path / "mined.jsonl")]).findings.counts()[0] == 0


def test_what_dev_and_test_look_for_is_no_training_rows_negative(tmp_path: Path, model: str) -> None:
    mining = asked(tmp_path, make_pairs(), model)
    mined, _ = run(mining)
    dataset = prepare([str(mining.to)], folder=tmp_path / "data", eval_data=None, seed=mining.seed)
    corpus = {row["_id"]: row["text"] for row in _lines(Path(dataset.eval_data) / "corpus.jsonl")}
    looked_for = {
        corpus[line.split("\t")[1]]
        for split in ("dev", "test")
        for line in (Path(dataset.eval_data) / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]
    }
    trained = {passage for row in _lines(Path(dataset.train_data[0])) for passage in row["neg"]}
    assert len(looked_for) == mined.held_out == 48
    assert not looked_for & trained
    assert len(trained) > 20


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("flag", ["eval_data", "corpus"])
def test_passages_of_judged_queries_are_left_out_even_where_rows_have_them(
    tmp_path: Path, model: str, beir: str, flag: str
) -> None:
    """A test passage that is a row's positive is nearest to a row with the same words, which must not get it."""
    passages = [row["text"] for row in _lines(Path(beir) / "corpus.jsonl")]
    pairs = make_pairs(100)
    pairs[0]["pos"] = [passages[7]]  # test query 7's
    pairs[1]["query"] = f"{passages[7]} w1"
    mined, rows = run(asked(tmp_path, pairs, model, **{flag: beir, "relative_margin": None}))
    judged, negatives = set(passages[:12]), {passage for row in rows for passage in row["neg"]}
    assert not judged & negatives
    assert bool(negatives & set(passages[12:])) == (flag == "corpus")
    assert mined.held_out == {"eval_data": 1, "corpus": 12 + 39}.get(flag) or flag == "corpus"


def test_a_rows_own_negatives_stay_but_for_false_ones(tmp_path: Path, model: str, beir: str) -> None:
    pairs = make_pairs(40)
    query, positive = pairs[0]["query"], pairs[0]["pos"][0]
    pairs[0] |= {"neg": [f" {positive} ", "x1 x2 x3"], "pos_scores": [1.0], "neg_scores": [0.9, 0.1], "prompt": "p"}
    pairs[1] = {"query": query, "pos": [pairs[1]["pos"][0]], "neg": [positive]}  # a positive of the same query
    mined, rows = run(asked(tmp_path, pairs, model, eval_data=beir, relative_margin=None, max_score=1.0))
    assert (mined.own, mined.own_removed, mined.kept_rows, mined.mined_rows) == (3, 2, 1, 39)
    assert rows[0] == pairs[0] | {"neg": ["x1 x2 x3"], "neg_scores": [0.1]}
    assert len(rows[1]["neg"]) == 7
    assert not {positive, *pairs[1]["pos"]} & set(rows[1]["neg"])


def test_own_negatives_that_dev_or_test_look_for_are_removed(tmp_path: Path, model: str, beir: str) -> None:
    passages = [row["text"] for row in _lines(Path(beir) / "corpus.jsonl")]
    pairs = make_pairs(30)
    pairs[0]["neg"] = [f" {passages[7]} ", passages[12]]  # of test query 7, and of none
    pairs[1]["neg"] = [passages[7]]
    mined, rows = run(asked(tmp_path, pairs, model, eval_data=beir, relative_margin=None, max_score=1.0))
    assert (mined.own, mined.own_removed, mined.kept_rows, mined.mined_rows) == (3, 2, 1, 29)
    assert rows[0]["neg"] == [passages[12]]
    assert passages[7] not in {text.strip() for row in rows for text in row["neg"]}
    assert "removed 2 of 3 negatives that rows came with, as near as a positive, or" in " ".join(mined.lines())


def test_own_negatives_as_near_as_the_positive_are_removed(tmp_path: Path, model: str, beir: str) -> None:
    pairs = make_pairs(30)
    pairs[0]["neg"] = [pairs[0]["query"]]  # nothing is nearer to a query than itself
    mined, rows = run(asked(tmp_path, pairs, model, eval_data=beir))
    assert (mined.own, mined.own_removed) == (1, 1)
    assert pairs[0]["query"] not in rows[0]["neg"]


def test_a_mine_that_was_killed_goes_on_to_the_same_bytes(
    tmp_path: Path, model: str, beir: str, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "CHUNK", 8)
    settings = {"eval_data": beir, "teacher": teacher, "sampling_strategy": "random", "num_negatives": 2}
    whole, killed = (
        asked(tmp_path / name, make_pairs(12), model, relative_margin=None, **settings) for name in ("whole", "killed")
    )
    calls = _counted(monkeypatch)
    run(whole)
    assert calls == {"encode": 4, "predict": 25}  # 2 + 2 chunks; 12 queries twice, and all the positives once
    for place in (("encode", 3), ("predict", 10)):
        _counted(monkeypatch, dies_at=place)
        with pytest.raises(KeyboardInterrupt):
            run(killed)
        assert not killed.to.exists()
    calls = _counted(monkeypatch)
    run(killed)
    assert calls == {"encode": 0, "predict": 25 - 9}
    assert killed.to.read_bytes() == whole.to.read_bytes()
    left = sorted(path.name for path in killed.to.parent.iterdir())
    assert left == [".mined.jsonl.mining", "mined.jsonl", "pairs.jsonl"]


def _counted(monkeypatch: pytest.MonkeyPatch, dies_at: tuple[str, int] | None = None) -> dict[str, int]:
    """Counts what the models are asked; `dies_at` a call, as by a kill."""
    calls = {"encode": 0, "predict": 0}

    def count(kind: type[Any], name: str) -> None:
        real = _REAL[name]

        def counting(*args: Any, **kwargs: Any) -> Any:
            if (name, calls[name] + 1) == dies_at:
                raise KeyboardInterrupt
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(kind, name, counting)

    count(SentenceTransformer, "encode")
    count(CrossEncoder, "predict")
    return calls


_REAL = {"encode": SentenceTransformer.encode, "predict": CrossEncoder.predict}


def test_another_seed_draws_others(tmp_path: Path, model: str, beir: str) -> None:
    settings = {"eval_data": beir, "sampling_strategy": "random", "num_negatives": 2}
    first = asked(tmp_path / "a", make_pairs(40), model, **settings)
    other = asked(tmp_path / "b", make_pairs(40), model, seed=7, **settings)
    assert run(first)[1] != run(other)[1]


def test_a_teachers_scores_are_those_that_flagembedding_distils(
    tmp_path: Path, model: str, teacher: str, beir: str
) -> None:
    mining = asked(
        tmp_path, make_pairs(30), model, eval_data=beir, teacher=teacher, num_negatives=3, relative_margin=None
    )
    _, rows = run(mining)
    pairs = [(rows[4]["query"], passage) for passage in rows[4]["pos"] + rows[4]["neg"]]
    expected = CrossEncoder(teacher).predict(pairs, activation_fn=torch.nn.Identity())
    assert rows[4]["pos_scores"] + rows[4]["neg_scores"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert all(row["neg_scores"] == pytest.approx(sorted(row["neg_scores"], reverse=True), abs=1e-5) for row in rows)
    assert survey([str(mining.to)]).has_scores


def test_texts_longer_than_a_teacher_has_positions_are_cut(tmp_path: Path, model: str, teacher: str, beir: str) -> None:
    """Its tokenizer knows no limit."""
    rows = [{**row, "pos": [row["pos"][0] + " w1" * 200]} for row in make_pairs(30)]
    mining = asked(tmp_path, rows, model, eval_data=beir, teacher=teacher, num_negatives=1, relative_margin=None)
    assert len(run(mining)[1]) == 30


def test_a_model_that_changed_is_asked_again(tmp_path: Path, model: str, beir: str, monkeypatch: Any) -> None:
    mining = asked(tmp_path, make_pairs(30), model, eval_data=beir)
    run(mining)
    mining.to.unlink()
    calls = _counted(monkeypatch)
    run(mining)
    assert calls["encode"] == 0
    mining.to.unlink()
    run(replace(mining, model=make_bag_of_words(tmp_path / "other", bert=True)))
    assert calls["encode"] == 2


def test_rows_that_only_have_each_other_need_a_corpus(tmp_path: Path, model: str, beir: str) -> None:
    pair = {"query": "w1 w2", "pos": ["w1 w2 w3"]}
    with pytest.raises(RequestError, match="every passage is as near to it as its positive"):
        run(asked(tmp_path, [pair], model, eval_data=beir))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_negatives", "0"], "--num_negatives must be 1 or more, but got 0"),
        (["--range_min", "9", "--range_max", "12"], "--range_max must be at least range_min + num_negatives, 16"),
        (["--sampling_strategy", "best"], "--sampling_strategy must be top or random, but got 'best'"),
        (["--relative_margin", "nan"], "--relative_margin must be finite, but got nan"),
        (["--to", "FOLDER/pairs.jsonl"], "is there already; remove it, or name another file"),
        (["--to", "FOLDER/mined.txt"], "must end in .json"),
        (["--to", "FOLDER/absent/mined.jsonl"], "make it first"),
        (["--model", "FOLDER/absent"], "there is no such folder"),
        (["--model", "FOLDER/empty"], "--model"),
        (["--teacher", "FOLDER/two"], "a teacher gives a pair one score, but this one gives 2"),
        (["--corpus", "FOLDER"], "--corpus needs this file, which is not there"),
        (["--eval_data", "FOLDER"], "--eval_data needs the files"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_embedded(
    tmp_path: Path, model: str, beir: str, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(tmp_path, make_pairs(4), model)
    (tmp_path / "empty").mkdir()
    make_cross_encoder(tmp_path / "two", labels=2)
    given = ["--to", "FOLDER/mined.jsonl", "--model", model, "--eval_data", beir, *flags]
    assert (
        main(["mine", str(tmp_path / "pairs.jsonl"), *(flag.replace("FOLDER", str(tmp_path)) for flag in given)]) == 2
    )
    assert words in capsys.readouterr().err
    assert not (tmp_path / "mined.jsonl").exists()


def test_a_damaged_store_is_told(tmp_path: Path, model: str, beir: str) -> None:
    mining = asked(tmp_path, make_pairs(4), model, eval_data=beir)
    mining.store.write_bytes(b"half of something" * 100)
    with pytest.raises(RequestError, match=r"\.mined\.jsonl\.mining: .* cannot be read .*; remove it"):
        run(mining)


def test_rows_are_checked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"query": "", "pos": ["b"]}\n{"query": "a", "pos": []}\n')
    assert main(["mine", str(file), "--to", str(tmp_path / "mined.jsonl")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{file}:1: 'query' is empty",
        f"{file}:2: 'pos' is an empty list: a row needs at least one positive passage",
    ]


def test_the_command_says_what_it_did(
    tmp_path: Path, model: str, beir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mining = asked(tmp_path, make_pairs(30), model)
    assert main(["mine", mining.rows, "--to", str(mining.to), "--model", model, "--eval_data", beir]) == 0
    said = capsys.readouterr().out
    assert "30 rows, 210 negatives: 0 rows kept their own, 30 got new ones" in said
    assert f"{mining.to}, in " in said


def test_checking_rows_loads_no_torch(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "pos": ["b"], "neg": ["c"]}\n')
    code = (
        "import sys; from tuner.data.__main__ import main; main(['check', sys.argv[1]]);"
        "assert not {'torch', 'sentence_transformers', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "rows.jsonl")], check=True)


def test_fingerprints_of_titles(tmp_path: Path, model: str, beir: str) -> None:
    """A corpus has a passage with its title, rows without: it is one passage."""
    (tmp_path / "titled").mkdir()
    pairs = make_pairs(30)
    titled = {"_id": "1", "title": "x3", "text": pairs[0]["pos"][0]}
    (tmp_path / "titled" / "corpus.jsonl").write_text(json.dumps(titled) + "\n")
    mining = asked(tmp_path, pairs, model, eval_data=beir, corpus=str(tmp_path / "titled"), relative_margin=None)
    _, rows = run(mining)
    assert fingerprint(f"x3 {pairs[0]['pos'][0]}") not in {fingerprint(text) for row in rows for text in row["neg"]}
