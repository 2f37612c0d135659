"""Packed texts give what padded ones do, for every type of encoder that is said to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel, XLMRobertaModel

from trainables.m3.packing import Packed, Padded, attend_text_by_text, attends_text_by_text, can_pack

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
GROUP = {
    "input_ids": torch.tensor([[0, 7, 1, 9, 2], [0, 2, 1, 1, 1], [0, 9, 2, 1, 1]]),  # the first text says <pad>
    "attention_mask": MASK,
    "places": torch.zeros_like(MASK),
}


def encoder_of(model_type: str, **changes: Any) -> PreTrainedModel:
    sizes = {"vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    more = {"intermediate_size": 16, "max_position_embeddings": 16, "pad_token_id": 1}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **sizes, **dropout, **more, **changes)
    encoder: PreTrainedModel = AutoModel.from_config(config, attn_implementation="sdpa")
    return encoder.double()


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
def test_hidden_states_and_gradients_equal_the_padded_ones(model_type: str) -> None:
    encoder = encoder_of(model_type)
    assert can_pack(encoder)
    found = []
    for kind in (Padded, Packed):
        if kind is Packed:
            attend_text_by_text(encoder)
        encoder.zero_grad()
        rows = kind(GROUP)
        hidden = rows.pad(rows.encode(encoder))
        hidden.pow(3).sum().backward()
        found.append((hidden, {name: each.grad for name, each in encoder.named_parameters() if each.grad is not None}))
    torch.testing.assert_close(found[1], found[0])


def test_an_encoder_that_attends_text_by_text_takes_padded_texts_as_before() -> None:
    encoder = encoder_of("xlm-roberta")
    expected = Padded(GROUP).encode(encoder)
    attend_text_by_text(encoder)
    torch.testing.assert_close(Padded(GROUP).encode(encoder), expected, rtol=0, atol=0)


def test_pad_puts_tokens_in_their_rows() -> None:
    packed = Packed(GROUP)
    tokens = torch.arange(1, 11)[:, None]
    assert packed.pad(tokens).squeeze(-1).tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 9, 10, 0, 0]]
    assert packed.first(tokens).squeeze(-1).tolist() == [1, 6, 8]


@pytest.mark.parametrize(("model_type", "changes"), [("modernbert", {}), ("xlm-roberta", {"is_decoder": True})])
def test_other_encoders_stay_padded(model_type: str, changes: dict[str, Any]) -> None:
    assert not can_pack(encoder_of(model_type, **changes))


def test_a_class_made_of_a_known_one_stays_padded() -> None:
    """Remote code keeps the `model_type` of what it is made of; its attention may not take our arguments."""

    class Remote(XLMRobertaModel):
        pass

    assert not can_pack(Remote(encoder_of("xlm-roberta").config))


def test_saved_models_do_not_name_our_attention(tmp_path: Path) -> None:
    encoder = encoder_of("xlm-roberta")
    attend_text_by_text(encoder)
    assert attends_text_by_text(encoder)
    encoder.save_pretrained(tmp_path)
    assert "text_by_text" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
