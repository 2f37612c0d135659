"""Packed texts give what padded ones do, for every type of encoder that is said to."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from tests.support.varlen_kernels import kernels_on_cpu
from trainables.m3.batching import Layout
from trainables.m3.packing import Packed, Padded
from trainables.varlen import attend_text_by_text, can_pack, padding_position

QUERIES = [np.array([0, 9, 2], dtype=np.int32)]
PASSAGES = [np.array([0, 7, 1, 9, 2], dtype=np.int32), np.array([0, 2], dtype=np.int32)]  # the first says <pad>


def encoder_of(model_type: str, **changes: Any) -> PreTrainedModel:
    sizes = {"vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    more = {"intermediate_size": 16, "max_position_embeddings": 16, "pad_token_id": 1}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **sizes, **dropout, **more, **changes)
    encoder: PreTrainedModel = AutoModel.from_config(config, attn_implementation="sdpa")
    return encoder.double()


def group_of(encoder: PreTrainedModel, packed: bool) -> dict[str, Any]:
    layout = Layout(
        pad_token_id=1,
        special_tokens=(0, 1, 2, 3),
        pad_to_multiple_of=None,
        padding_side="right",
        sub_batch_size=None,
        group_cost=1000,
        packed=packed,
        padding_position=padding_position(encoder),
        like_upstream=False,
    )
    batch = layout.batch(QUERIES, PASSAGES)["texts"]
    assert (batch["order"] is None) == packed  # padded ones are sorted by length
    group: dict[str, Any] = batch["groups"][0]
    return group


@pytest.mark.parametrize("way", ["text by text", "flash", "efficient"])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
def test_hidden_states_and_gradients_equal_the_padded_ones(model_type: str, way: str) -> None:
    encoder = encoder_of(model_type)
    assert can_pack(encoder)
    found = []
    for kind in (Padded, Packed):
        if kind is Packed:
            attend_text_by_text(encoder)
        encoder.zero_grad()
        group = group_of(encoder, packed=kind is Packed)
        rows = kind(group)
        with nullcontext() if way == "text by text" else kernels_on_cpu(way):
            hidden = rows.encode(encoder)
            by_length = np.argsort(group["lengths"])
            texts = [hidden[group[name]][by_length] for name in ("first", "last")] + [rows.mean(hidden)[by_length]]
            torch.cat(texts).pow(3).sum().backward()
        found.append((texts, {name: each.grad for name, each in encoder.named_parameters() if each.grad is not None}))
    torch.testing.assert_close(found[1], found[0])


def test_rows_of_a_group_are_those_of_its_texts() -> None:
    """Queries 3 tokens, passages 5 and 2; a vector for all tokens but the first, a column for 9 only."""
    packed = group_of(encoder_of("xlm-roberta"), packed=True)
    assert packed["input_ids"].tolist() == [0, 9, 2, 0, 7, 1, 9, 2, 0, 2]
    assert packed["positions"].tolist() == [2, 3, 4, 2, 3, 1, 4, 5, 2, 3]  # <pad> has the padding's
    assert packed["cu_seqlens"].tolist() == [0, 3, 8, 10]
    assert packed["longest"] == 5
    assert packed["first"].tolist() == [0, 3, 8]
    assert packed["last"].tolist() == [2, 7, 9]
    assert packed["inner"].tolist() == [1, 2, 4, 5, 6, 7, 9]
    assert packed["scored"].tolist() == [1, 6]
    assert packed["cells"].tolist() == [0, 1]
    assert packed["grid"].tolist() == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
    padded = group_of(encoder_of("xlm-roberta"), packed=False)
    assert padded["input_ids"].tolist() == [[0, 2, 1, 1, 1], [0, 9, 2, 1, 1], [0, 7, 1, 9, 2]]
    assert padded["first"].tolist() == [0, 5, 10]
    assert padded["last"].tolist() == [1, 7, 14]
    assert padded["scored"].tolist() == [6, 13]


def test_berts_positions_begin_at_0() -> None:
    assert group_of(encoder_of("bert"), packed=True)["positions"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1]
