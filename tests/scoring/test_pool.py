"""A pool of passages: what is in it, and what a model scores on it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests.support.m3_fixtures import make_eval, make_model
from trainables.scoring.metric import HEADS
from trainables.scoring.pool import Pool, draw_pool, file_hash
from trainables.scoring.scorer import EncodingSettings, Scorer

IDS = [f"p{number}" for number in range(10)]


def test_a_pool_has_the_judged_the_best_and_a_random_fill() -> None:
    rankings = [{"q1": ["p3", "p4"], "q2": ["p4"]}, {"q1": ["p5"]}]
    pool = draw_pool(IDS, ["p0", "p3"], rankings, size=6, seed=0)
    assert pool is not None
    assert set(pool.passages) > {"p0", "p3", "p4", "p5"}
    assert (len(pool.passages), pool.corpus) == (6, 10)
    assert list(pool.passages) == sorted(pool.passages)
    assert draw_pool(IDS, ["p0", "p3"], rankings, size=6, seed=0) == pool
    fills = {draw_pool(IDS, ["p0", "p3"], rankings, size=6, seed=seed).hash for seed in range(20)}  # type: ignore[union-attr]
    assert len(fills) > 5  # of 15 pairs
    larger = draw_pool(IDS, ["p0", "p3"], rankings, size=2, seed=0)
    assert larger is not None
    assert list(larger.passages) == ["p0", "p3", "p4", "p5"]


@pytest.mark.parametrize("size", [10, 11])
def test_a_pool_that_would_be_the_corpus_is_none(size: int) -> None:
    assert draw_pool(IDS, ["p0"], [], size=size, seed=0) is None


def test_a_judged_passage_must_be_in_the_corpus() -> None:
    with pytest.raises(ValueError, match="no passage 'p77'"):
        draw_pool(IDS, ["p77"], [], size=5, seed=0)


def test_a_file_of_another_pool_is_not_read(tmp_path: Path) -> None:
    pool = Pool(passages=["p1", "é"], corpus=3)
    pool.write(tmp_path / "pool.json")
    assert file_hash(tmp_path / "pool.json") == pool.hash
    assert Pool.read(tmp_path / "pool.json", pool.hash) == pool
    replace(pool, passages=["p1"]).write(tmp_path / "pool.json")
    with pytest.raises(ValueError, match="the pool that the base model was scored with"):
        Pool.read(tmp_path / "pool.json", pool.hash)
    with pytest.raises(ValueError, match="the pool that the base model was scored with"):
        Pool.read(tmp_path / "nowhere.json", pool.hash)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("pool")
    make_model(base / "model")
    make_eval(base / "eval", queries=5, passages=600)
    return base


def _model(folder: Path, seed: int) -> Any:
    """An encoder with all heads; of seed 0 as it is, of others moved a little."""
    torch.manual_seed(seed)
    heads = {"colbert_linear": torch.nn.Linear(16, 16), "sparse_linear": torch.nn.Linear(16, 1)}
    encoder = AutoModel.from_pretrained(folder / "model")
    if seed:
        for parameter in encoder.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return SimpleNamespace(model=encoder, **heads)


def _scorer(folder: Path) -> Scorer:
    settings = EncodingSettings(query_max_len=8, passage_max_len=16, sentence_pooling_method="mean")
    return Scorer(folder / "eval", AutoTokenizer.from_pretrained(folder / "model"), settings)


def _pool(scorer: Scorer, base: Any, size: int) -> Pool:
    pool = draw_pool(scorer.ids, (), scorer.rankings(base, "dev").values(), size=size, seed=0)
    assert pool is not None
    return pool


def test_the_base_model_scores_on_its_pool_what_it_scores_on_the_corpus(folder: Path) -> None:
    base, scorer = _model(folder, 0), _scorer(folder)
    pool = _pool(scorer, base, 0)
    assert 100 < len(pool.passages) < 600
    assert scorer.score(base, "dev", pool=pool) == scorer.score(base, "dev")


def test_a_pool_ranks_as_the_corpus_does_without_what_is_not_in_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, other = _scorer(folder), _model(folder, 1)
    pool = _pool(scorer, _model(folder, 0), 400)
    monkeypatch.setattr("trainables.scoring.scorer.DEPTH", 600)
    whole, part = scorer.rankings(other, "dev"), scorer.rankings(other, "dev", pool=pool)
    members = set(pool.passages)
    for head in HEADS:
        for query, ranking in part[head].items():
            assert len(ranking) == len(members)
            assert ranking == [passage for passage in whole[head][query] if passage in members], (head, query)


def test_what_is_kept_of_a_frozen_encoder_is_not_mixed_up(folder: Path) -> None:
    scorer, base = _scorer(folder), _model(folder, 0)
    pool = _pool(scorer, base, 0)
    scores = [scorer.score(base, "dev", frozen_encoder="base", pool=part) for part in (None, pool, None, pool)]
    assert scores == [scorer.score(base, "dev")] * 4


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    Pool(passages=["p1"], corpus=3).write(tmp_path / "pool.json")
    assert json.loads((tmp_path / "pool.json").read_text()) == {"corpus": 3, "passages": ["p1"]}
