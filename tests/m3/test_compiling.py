"""Layers that are compiled: when, and that they compute the same."""

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import TrainerControl, TrainerState

from tests.m3.test_packing import encoder_of
from tests.support.varlen_kernels import kernels_on_cpu
from trainables import varlen
from trainables.m3 import compiling
from trainables.m3.compiling import WORTH_STEPS, CompiledLayers, can_compile
from trainables.varlen import attend_text_by_text, within_texts


def training(**changes: Any) -> Any:
    """Returns what is asked of a trainer's arguments: on one of today's cards, in bfloat16."""
    values = {"bf16": True, "fp16": False, "full_determinism": False, "device": torch.device("cuda", 0)}
    return SimpleNamespace(**{**values, "hf_deepspeed_config": None, **changes})


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns an encoder that can be compiled by `training`, if there were the card."""
    monkeypatch.setattr(varlen, "_is_modern", lambda _: True)
    monkeypatch.setattr(compiling, "_has_triton", lambda: True)
    encoder = encoder_of("xlm-roberta")
    attend_text_by_text(encoder)
    return encoder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"fp16": True, "bf16": False}, True),
        ({"bf16": False}, False),
        ({"full_determinism": True}, False),
        ({"device": torch.device("cpu")}, False),
        ({"hf_deepspeed_config": SimpleNamespace(is_zero3=lambda: False)}, True),
        ({"hf_deepspeed_config": SimpleNamespace(is_zero3=lambda: True)}, False),
    ],
)
def test_layers_are_compiled_where_their_attention_is_one_operator(
    changes: dict[str, Any], expected: bool, encoder: Any
) -> None:
    assert can_compile(encoder, training(**changes)) is expected


def test_padded_texts_are_not_compiled(encoder: Any) -> None:
    encoder.set_attn_implementation("sdpa")
    assert not can_compile(encoder, training())


@pytest.mark.parametrize(
    ("asked", "steps", "expected"),
    [
        (None, WORTH_STEPS, True),
        (None, WORTH_STEPS - 1, False),
        (True, 1, True),
        (False, 10 * WORTH_STEPS, False),
    ],
)
def test_a_short_training_is_not_made_to_wait(asked: bool | None, steps: int, expected: bool, encoder: Any) -> None:
    compiled: list[bool] = []
    for layer in encoder.encoder.layer:
        layer.compile = lambda *, dynamic: compiled.append(dynamic)
    layers = CompiledLayers(encoder, asked)
    layers.on_train_begin(training(), TrainerState(max_steps=steps), TrainerControl())
    assert compiled == [True] * (len(encoder.encoder.layer) if expected else 0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: install g++")
def test_compiled_layers_compute_the_same_for_any_lengths() -> None:
    """Compiled for CPUs, through the operator of a GPU's kernel."""
    encoder = encoder_of("xlm-roberta").train()
    attend_text_by_text(encoder)
    batches = [[3, 5, 7], [10, 2], [4, 4, 4, 1, 9]]
    with kernels_on_cpu("flash"):
        expected = [_gradient(encoder, lengths) for lengths in batches]
        before = counters["stats"]["unique_graphs"]
        for layer in encoder.encoder.layer:
            layer.compile(dynamic=True)
        found = [_gradient(encoder, lengths) for lengths in batches]
        assert counters["stats"]["unique_graphs"] - before == 1
        layers = CompiledLayers(encoder, None)
        layers._compiled = True
        with layers.as_written():
            torch.testing.assert_close(_gradient(encoder, batches[0]), expected[0], rtol=0, atol=0)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def _gradient(encoder: Any, lengths: list[int]) -> torch.Tensor:
    """Returns the gradient of a weight in the first layer."""
    encoder.zero_grad()
    count = sum(lengths)
    ids = torch.arange(count)[None] % 5 + 4
    places = torch.cat([torch.arange(length) for length in lengths])[None] + 2
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    given = within_texts(encoder, ends, max(lengths), lengths)
    hidden = encoder(ids, position_ids=places, **given).last_hidden_state
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).pow(3).sum().backward()
    gradient: torch.Tensor = encoder.encoder.layer[0].attention.self.query.weight.grad
    return gradient.clone()
