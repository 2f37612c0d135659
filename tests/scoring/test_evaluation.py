import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn
from transformers import AutoModel, AutoTokenizer

from tests.support.m3_fixtures import make_eval, make_model
from trainables.failures import NonFiniteScore
from trainables.scoring import frozen
from trainables.scoring import scorer as evaluation
from trainables.scoring.encoding import Encoder, evaluation_mode, tokenise
from trainables.scoring.frozen import HiddenStates
from trainables.scoring.heldout import read_passages, read_qrels, read_queries
from trainables.scoring.metric import HEADS, MEASURES
from trainables.scoring.ranking import Matcher
from trainables.scoring.scorer import HYBRID_CANDIDATES, HYBRID_WEIGHTS, EncodingSettings, HybridWeights, Scorer, Scores

SETTINGS = EncodingSettings(query_max_len=8, passage_max_len=16, sentence_pooling_method="mean")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("evaluation")
    make_model(base / "model")
    make_eval(base / "eval", queries=12, passages=150)
    return base


def load(folder: Path) -> tuple[Any, Any]:
    """Returns model and tokenizer, the heads random but always the same."""
    torch.manual_seed(0)
    heads = {"colbert_linear": torch.nn.Linear(16, 16), "sparse_linear": torch.nn.Linear(16, 1)}
    return SimpleNamespace(model=AutoModel.from_pretrained(folder), **heads), AutoTokenizer.from_pretrained(folder)


def score(folder: Path, settings: EncodingSettings = SETTINGS) -> Scores:
    model, tokenizer = load(folder / "model")
    return Scorer(folder / "eval", tokenizer, settings).score(model, "dev")


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
def test_scores_equal_flagembedding(folder: Path, pooling: Any) -> None:
    from FlagEmbedding import BGEM3FlagModel

    theirs = BGEM3FlagModel(
        str(folder / "model"), use_fp16=False, devices="cpu", pooling_method=pooling, query_instruction_for_retrieval=""
    )
    settings = replace(SETTINGS, sentence_pooling_method=pooling)
    queries = list(read_queries(folder / "eval", read_qrels(folder / "eval", "dev")).values())[:4]
    passages = [text for _, text in read_passages(folder / "eval")][:9]
    expected = theirs.compute_score(
        [(query, passage) for query in queries for passage in passages],
        batch_size=1,
        max_query_length=8,
        max_passage_length=16,
    )
    heads = HybridWeights._fields
    encoder = Encoder(theirs.model, theirs.tokenizer, settings, heads)
    q_tokens, p_tokens = tokenise(theirs.tokenizer, queries, 8), tokenise(theirs.tokenizer, passages, 16)
    with evaluation_mode(theirs.model):
        batches = [(encoder.encode(q_tokens, batch), batch) for batch in q_tokens.batches(16)]
        found = Matcher(batches, 4, heads).scores(encoder.encode(p_tokens, np.arange(9)))
    found["colbert+sparse+dense"] = evaluation._mixed(found, HYBRID_WEIGHTS)
    for name, scores in found.items():
        np.testing.assert_allclose(scores.flatten().numpy(), expected[name], atol=1e-6, err_msg=name)


def test_all_heads_and_measures_are_scored_for_every_query(folder: Path) -> None:
    scores = score(folder)
    assert set(scores.means) == {f"{head}.{name}" for head in HEADS for name in MEASURES}
    assert scores.per_query["sparse.mrr_at_10"].keys() == {f"q{number}" for number in range(12)}
    assert all(len(found) == 10 for found in scores.retrieved.values())
    assert 0 < scores.means["dense.recall_at_10"] < 1


def test_the_size_of_batches_and_chunks_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = score(folder)
    monkeypatch.setattr(evaluation, "_SCORES_AT_ONCE", 1)
    monkeypatch.setattr("trainables.scoring.ranking._SIMILARITIES_AT_ONCE", 1)
    assert score(folder, replace(SETTINGS, batch_tokens=128)) == expected


def test_too_little_memory_for_a_batch_changes_nothing(folder: Path) -> None:
    """A text has at most 16 tokens."""
    model, tokenizer = load(folder / "model")

    def enter(_: torch.nn.Module, __: Any, given: dict[str, torch.Tensor]) -> None:
        if given["input_ids"].numel() > 64:
            raise torch.OutOfMemoryError

    model.model.register_forward_pre_hook(enter, with_kwargs=True)
    assert Scorer(folder / "eval", tokenizer, SETTINGS).score(model, "dev") == score(folder)


def test_a_corpus_smaller_than_the_depth_is_ranked_whole(folder: Path, tmp_path: Path) -> None:
    make_eval(tmp_path / "eval", queries=3, passages=7)
    model, tokenizer = load(folder / "model")
    scores = Scorer(tmp_path / "eval", tokenizer, SETTINGS).score(model, "test", ["sparse"])
    assert scores.means["sparse.recall_at_10"] == 1.0
    assert all(sorted(found) == [f"p{number}" for number in range(7)] for found in scores.retrieved.values())


def test_equal_passages_rank_by_id_descending(folder: Path, tmp_path: Path) -> None:
    make_eval(tmp_path / "eval", queries=1, passages=2)
    rows = [{"_id": key, "text": "w1 w2"} for key in ("p1", "p3", "p2")]
    (tmp_path / "eval" / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, tokenizer = load(folder / "model")
    scores = Scorer(tmp_path / "eval", tokenizer, SETTINGS).score(model, "dev", ["dense"])
    assert scores.retrieved == {"q0": ["p3", "p2", "p1"]}


def test_a_model_without_heads_is_scored_dense_only(folder: Path) -> None:
    model, tokenizer = load(folder / "model")
    model.colbert_linear = model.sparse_linear = None
    scorer = Scorer(folder / "eval", tokenizer, SETTINGS)
    assert set(scorer.score(model, "dev").means) == {f"dense.{name}" for name in MEASURES}
    with pytest.raises(ValueError, match="no sparse head: train it with unified_finetuning"):
        scorer.score(model, "dev", ["sparse"])


def test_an_unknown_head_is_refused(folder: Path) -> None:
    model, tokenizer = load(folder / "model")
    with pytest.raises(ValueError, match="one of dense, sparse, colbert, hybrid, but got 'lexical'"):
        Scorer(folder / "eval", tokenizer, SETTINGS).score(model, "dev", ["lexical"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    model, tokenizer = load(folder / "model")
    with torch.no_grad():
        model.sparse_linear.bias.fill_(value)
    scorer = Scorer(folder / "eval", tokenizer, SETTINGS)
    scorer.score(model, "dev", ["dense", "colbert"])
    with pytest.raises(NonFiniteScore, match="must be finite"):
        scorer.score(model, "dev")


def test_training_goes_on_as_if_nothing_was_scored(folder: Path) -> None:
    model, tokenizer = load(folder / "model")
    model.model.train()
    before = torch.get_rng_state()
    Scorer(folder / "eval", tokenizer, SETTINGS).score(model, "dev")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.model.modules())
    assert all(parameter.requires_grad for parameter in model.model.parameters())


def test_the_weights_of_training_are_tried_after_the_default() -> None:
    assert HYBRID_CANDIDATES[0] == HYBRID_WEIGHTS == (1.0, 1.0, 1.0)
    assert (1.0, 0.3, 1.0) in HYBRID_CANDIDATES
    assert len(set(HYBRID_CANDIDATES)) == len(HYBRID_CANDIDATES)


def test_hybrid_weights_are_tuned_to_the_best_candidate(folder: Path) -> None:
    model, tokenizer = load(folder / "model")
    scorer = Scorer(folder / "eval", tokenizer, SETTINGS)
    means = scorer.score(model, "dev").means
    heads = [HybridWeights(1.0, 0.0, 0.0), HybridWeights(0.0, 1.0, 0.0), HybridWeights(0.0, 0.0, 1.0)]
    of_head = {weights: means[f"{head}.mrr_at_10"] for head, weights in zip(HEADS, heads, strict=False)}
    best = scorer.tune_hybrid_weights(model, "dev", "mrr_at_10", heads)
    assert best == max(heads, key=of_head.__getitem__)
    assert scorer.score(model, "dev", ["hybrid"], best).means["hybrid.mrr_at_10"] == of_head[best]


def _score_as_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    scores = score(folder, replace(SETTINGS, batch_tokens=256))
    (folder / f"{rank}.json").write_text(scores.to_json())
    torch.distributed.destroy_process_group()


@pytest.mark.integration
@pytest.mark.timeout(300)  # two interpreters start
def test_two_processes_share_the_corpus_and_agree(folder: Path) -> None:
    spawn(_score_as_rank, args=(folder,), nprocs=2)
    expected = score(folder)
    for rank in range(2):
        assert Scores.from_json((folder / f"{rank}.json").read_text()) == expected


def test_a_frozen_encoder_encodes_each_text_once(folder: Path) -> None:
    model, tokenizer = load(folder / "model")
    scorer = Scorer(folder / "eval", tokenizer, SETTINGS)
    calls: list[int] = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    first = scorer.score(model, "dev", frozen_encoder="base")
    encoded = len(calls)
    other = SimpleNamespace(
        model=model.model, colbert_linear=model.colbert_linear, sparse_linear=torch.nn.Linear(16, 1)
    )
    second = scorer.score(other, "dev", frozen_encoder="base")
    assert len(calls) == encoded
    assert second.per_query["colbert.ndcg_at_10"] == first.per_query["colbert.ndcg_at_10"]
    assert second == scorer.score(other, "dev")
    assert len(calls) == 2 * encoded


def test_what_does_not_fit_into_memory_is_encoded_again() -> None:
    kept = HiddenStates(most_bytes=2 * 3 * 4 * 4)
    calls: list[int] = []

    def encode() -> torch.Tensor:
        calls.append(1)
        return torch.ones(2, 3, 4)

    for batch in ("a", "b", "a", "b"):
        assert torch.equal(kept.of(batch, encode), torch.ones(2, 3, 4))
    assert len(calls) == 3


def test_a_quarter_of_what_is_free_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch takes 96 bytes: of 800, the second would make 192 where 704 are left, more than a quarter of them."""
    free = [800.0]
    monkeypatch.setattr(frozen, "host_room", lambda: free[0])
    kept = HiddenStates()
    calls: list[str] = []

    def encode(batch: str) -> torch.Tensor:
        calls.append(batch)
        return torch.ones(2, 3, 4)

    def ask(*batches: str) -> None:
        for batch in batches:
            kept.of(batch, partial(encode, batch))

    ask("a", "a")
    free[0] = 704
    ask("b", "b", "a")
    assert calls == ["a", "b", "b"]
    free[0] = 768  # another process has ended
    ask("b", "b")
    assert calls == ["a", "b", "b", "b"]
