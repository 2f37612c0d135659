from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from tests.support.m3_fixtures import make_bert_tokenizer, make_model, make_tokenizer
from tests.support.varlen_kernels import kernels_on_cpu
from trainables.scoring.encoding import Encoder, Tokens, evaluation_mode, pool, tokenise
from trainables.scoring.settings import EncodingSettings
from trainables.varlen import attend_text_by_text

TOKENS = Tokens(ids=np.array([7, 8, 7, 5, 6, 9], dtype=np.int32), starts=np.array([0, 2, 3, 6]))


def test_texts_are_cut_and_not_padded() -> None:
    tokens = tokenise(make_tokenizer(), ["w0 w1", "w2 w3 w4 w5 w6"], 5)
    assert tokens.lengths.tolist() == [4, 5]
    assert tokens.ids.tolist() == [0, 4, 5, 2, 0, 6, 7, 8, 2]


def test_batches_hold_the_longest_first_within_the_tokens_allowed() -> None:
    assert [batch.tolist() for batch in TOKENS.batches(4)] == [[2], [0, 1]]
    assert [batch.tolist() for batch in TOKENS.batches(1)] == [[2], [0], [1]]


def test_a_batch_is_padded_to_its_longest_text() -> None:
    ids, mask = TOKENS.padded(np.array([0, 1]), pad_id=1)
    assert ids.tolist() == [[7, 8], [7, 1]]
    assert mask.tolist() == [[1, 1], [1, 0]]


def test_texts_lie_end_to_end_with_their_places_among_padded_ones() -> None:
    """Token 5 is the padding's."""
    given, cells = TOKENS.end_to_end(np.array([2, 0]), padding=5)
    assert given["input_ids"].tolist() == [[5, 6, 9, 7, 8]]
    assert given["position_ids"].tolist() == [[5, 6, 7, 6, 7]]
    assert given["cu_seqlens"].tolist() == [0, 3, 5]
    assert given["cu_seqlens"].dtype == torch.int32
    assert cells.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
@pytest.mark.parametrize("bert", [True, False], ids=["bert", "xlm-roberta"])
def test_texts_end_to_end_have_the_embeddings_of_padded_ones(bert: bool, pooling: Any, tmp_path: Path) -> None:
    make_model(tmp_path, bert=bert)
    encoder, tokenizer = AutoModel.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    model = SimpleNamespace(model=encoder, colbert_linear=nn.Linear(16, 16), sparse_linear=nn.Linear(16, 1))
    attend_text_by_text(encoder)
    tokens = tokenise(tokenizer, ["w1", "w1 w2 w3 w4", "w9 w8"], 8)
    settings = EncodingSettings(sentence_pooling_method=pooling)
    heads = ["dense", "sparse", "colbert"]
    with evaluation_mode(model), kernels_on_cpu("efficient") as called:
        padded, packed = (
            Encoder(model, tokenizer, settings, heads, packed=packed).encode(tokens, np.array([1, 2, 0]))
            for packed in (False, True)
        )
    assert called == ["efficient"]
    within = padded.mask[:, 1:, None]
    assert packed.vectors is not None
    assert padded.vectors is not None
    for name, (ours, theirs) in {
        "dense": (packed.dense, padded.dense),
        "sparse": (packed.weights, padded.weights),
        "colbert": (packed.vectors * within, padded.vectors * within),
    }.items():
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("method", "expected"), [("cls", [1.0, 4.0]), ("mean", [1.5, 4.0]), ("last_token", [2.0, 4.0])]
)
def test_pooling_leaves_padding_out(method: str, expected: list[float]) -> None:
    hidden = torch.tensor([[[1.0], [2.0]], [[4.0], [9.0]]])
    assert pool(hidden, torch.tensor([[1, 1], [1, 0]]), method).flatten().tolist() == expected


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of cls, mean, last_token, but got 'max'"):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), "max")


def test_instructions_are_formatted_only_when_given() -> None:
    settings = EncodingSettings(query_instruction_for_retrieval="find", query_instruction_format="{}:\\n{}")
    assert settings.query_text("x") == "find:\nx"
    assert settings.passage_text("{}") == "{}"


def test_defaults_are_those_of_flagembedding() -> None:
    from FlagEmbedding.abc.finetune.embedder import AbsEmbedderDataArguments, AbsEmbedderTrainingArguments

    theirs = AbsEmbedderDataArguments.__dataclass_fields__ | AbsEmbedderTrainingArguments.__dataclass_fields__
    for name, field in EncodingSettings.__dataclass_fields__.items():
        if name not in ("precision", "batch_tokens"):
            assert field.default == theirs[name].default, name


class Counting(nn.Module):
    """An encoder whose hidden state is the token id."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.dropout(input_ids[..., None] * self.scale))


def test_special_tokens_have_no_weight_and_a_missing_one_is_skipped() -> None:
    tokenizer = make_bert_tokenizer()
    assert tokenizer.eos_token_id is None
    model = SimpleNamespace(model=Counting(), colbert_linear=None, sparse_linear=nn.Identity())
    tokens = tokenise(tokenizer, ["w0 unknown", "w0"], 8)
    with evaluation_mode(model):
        found = Encoder(model, tokenizer, EncodingSettings(), ["sparse"]).encode(tokens, np.arange(2))
    cls, sep, word = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.convert_tokens_to_ids("w0")
    assert found.ids[0].tolist() == [cls, word, tokenizer.unk_token_id, sep]
    assert found.weights is not None
    assert found.weights.tolist() == [[0, word, 0, sep], [0, word, sep, 0]]


def _with_room_for(model: Counting, tokens: int) -> list[int]:
    """Lets batches of more tokens run out of memory; returns how many texts were tried at once."""
    tried = list[int]()

    def enter(_: nn.Module, __: Any, given: dict[str, torch.Tensor]) -> None:
        tried.append(len(given["input_ids"]))
        if given["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError

    model.register_forward_pre_hook(enter, with_kwargs=True)
    return tried


def test_what_does_not_fit_is_encoded_by_halves_and_so_is_what_follows() -> None:
    """5 texts of 2 tokens, room for 4 tokens: half of 10 tokens hold 2 texts."""
    model = SimpleNamespace(model=Counting().eval(), colbert_linear=None, sparse_linear=None)
    tried = _with_room_for(model.model, 4)
    tokens = Tokens(ids=np.arange(10, dtype=np.int32), starts=np.arange(0, 11, 2))
    settings = EncodingSettings(normalize_embeddings=False)
    encoder = Encoder(model, make_tokenizer(), settings, ["dense"])
    found = [(made.tolist(), texts.tolist()) for made, texts in encoder.encoded(tokens, np.arange(5), lambda e: e.ids)]
    assert found == [([[0, 1], [2, 3]], [0, 1]), ([[4, 5], [6, 7]], [2, 3]), ([[8, 9]], [4])]
    assert tried == [5, 2, 2, 1]
    assert [len(texts) for _, texts in encoder.encoded(tokens, np.arange(3), lambda e: e.ids)] == [2, 1]


def test_a_single_text_that_does_not_fit_is_out_of_memory() -> None:
    model = SimpleNamespace(model=Counting().eval(), colbert_linear=None, sparse_linear=None)
    tried = _with_room_for(model.model, 2)
    with pytest.raises(torch.OutOfMemoryError):
        list(Encoder(model, make_tokenizer(), EncodingSettings(), []).encoded(TOKENS, np.array([2, 0]), lambda e: e))
    assert tried == [2, 1]


def test_every_module_keeps_its_mode_even_after_an_error() -> None:
    model = SimpleNamespace(model=Counting(), colbert_linear=None, sparse_linear=nn.Linear(1, 1).eval())

    def stop() -> None:
        with evaluation_mode(model):
            assert not model.model.dropout.training
            assert torch.is_inference_mode_enabled()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert model.model.dropout.training
    assert not model.sparse_linear.training


def test_linear_layers_are_the_same_when_scoring() -> None:
    torch.manual_seed(0)
    inputs, layer = torch.randn(3, 5, 8).transpose(0, 1), nn.Linear(8, 4)
    expected = layer(inputs), nn.functional.linear(inputs, layer.weight)
    with evaluation_mode(SimpleNamespace(model=layer, colbert_linear=None, sparse_linear=None)):
        found = layer(inputs), nn.functional.linear(inputs, layer.weight)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
