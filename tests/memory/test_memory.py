"""The memory of a training step against what its tensors take, counted as they are made and freed."""

import dataclasses
import gc
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import XLMRobertaConfig, XLMRobertaModel

from tests.support.live_bytes import LiveBytes
from tests.support.m3_fixtures import make_tokenizer
from trainables.m3.batching import Layout
from trainables.m3.lora import Adapters, LoraArguments
from trainables.m3.runner import Model
from trainables.memory.plan import plan_step
from trainables.memory.shape import Lengths, Shape, Texts
from trainables.memory.step import Memory, memory

SIZE, LENGTH, VOCABULARY = 64, 100, 500
STEP: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "train_group_size": 8,
    "query_max_len": LENGTH,
    "passage_max_len": LENGTH,
}
BGE_M3 = Shape.of(
    SimpleNamespace(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        vocab_size=250_002,
        max_position_embeddings=8194,
    )
)
USERS = {
    "per_device_train_batch_size": 2,
    "train_group_size": 8,
    "query_max_len": 512,
    "passage_max_len": 512,
    "unified_finetuning": True,
    "fp16": True,
    "gradient_checkpointing": True,
}
"""A published command's."""


class Float32Norm(nn.LayerNorm):
    """LayerNorm as autocast has it on CUDA."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


def make_model(layers: int, sub_batch_size: int | None, checkpointing: bool, unified: bool) -> Model:
    shape: dict[str, Any] = {"hidden_size": SIZE, "intermediate_size": 4 * SIZE, "num_hidden_layers": layers}
    none: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY, num_attention_heads=4, max_position_embeddings=LENGTH + 2, **shape, **none
    )
    encoder = XLMRobertaModel(config, add_pooling_layer=False)
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.__class__ = Float32Norm
    heads = {"colbert_linear": nn.Linear(SIZE, SIZE), "sparse_linear": nn.Linear(SIZE, 1)}
    model = Model(
        {"model": encoder, **heads},
        tokenizer=make_tokenizer(),
        sub_batch_size=sub_batch_size,
        unified_finetuning=unified,
        negatives_cross_device=False,
        temperature=0.02,
    )
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    return model.train()


def measured(model: Model, queries: int, passages: int, *, mixed: bool) -> float:
    """Returns the most bytes at once of a forward and a backward pass over texts of full length."""
    layout = Layout(
        pad_token_id=1,
        special_tokens=(0, 1, 2, 3),
        pad_to_multiple_of=None,
        padding_side="right",
        sub_batch_size=model.sub_batch_size,
        group_cost=0,
        packed=False,
        padding_position=None,
        like_upstream=False,
    )
    texts = np.random.default_rng(0).integers(5, VOCABULARY, (queries + passages, LENGTH)).astype(np.int32)
    batch = layout.batch(list(texts[:queries]), list(texts[queries:]))
    gc.collect()
    with LiveBytes() as live:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            loss = model(**batch).loss
        loss.backward()
    return live.peak


@pytest.mark.parametrize("mixed", [True, False], ids=["16 bits", "float32"])
@pytest.mark.parametrize("unified", [True, False], ids=["all heads", "dense"])
@pytest.mark.parametrize(
    ("layers", "sub_batch_size", "checkpointing"),
    [(6, None, False), (6, None, True), (6, 6, False)],
    ids=["whole", "checkpointed", "sub-batches"],
)
def test_an_estimate_is_not_below_what_is_measured_and_close_to_it(
    layers: int, sub_batch_size: int | None, checkpointing: bool, unified: bool, mixed: bool
) -> None:
    arguments = {
        **STEP,
        "unified_finetuning": unified,
        "bf16": mixed,
    }
    model = make_model(layers, sub_batch_size, checkpointing, unified)
    peak = measured(model, 2, 16, mixed=mixed)
    shape = Shape.of(model.model.config)
    found = memory(shape, arguments, sub_batch_size=sub_batch_size, checkpointing=checkpointing)
    print(f"RATIO {activations(found) / peak:.3f}")
    assert 1.0 <= activations(found) / peak <= 1.15


@pytest.mark.parametrize("mixed", [True, False], ids=["16 bits", "float32"])
def test_a_frozen_encoder_takes_what_is_estimated_for_it(mixed: bool) -> None:
    arguments = {**STEP, "unified_finetuning": True, "bf16": mixed, "fix_encoder": True, "gradient_checkpointing": True}
    model = make_model(6, None, checkpointing=False, unified=True)
    model.model.requires_grad_(False)
    model.gradient_checkpointing_enable()
    peak = measured(model, 2, 16, mixed=mixed)
    found = memory(Shape.of(model.model.config), arguments)
    print(f"RATIO {activations(found) / peak:.3f}")
    assert 1.0 <= activations(found) / peak <= 1.2


class MaskedDropout(nn.Module):
    """Dropout as CUDA has it: its mask takes a byte a number."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.native_dropout(values, 0.1, True)[0]


@pytest.mark.parametrize("mixed", [True, False], ids=["16 bits", "float32"])
@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["without dropout", "with dropout"])
@pytest.mark.parametrize(
    ("sub_batch_size", "checkpointing"),
    [(None, False), (None, True), (6, False)],
    ids=["whole", "checkpointed", "sub-batches"],
)
def test_adapters_take_what_is_estimated_for_them(
    sub_batch_size: int | None, checkpointing: bool, dropout: float, mixed: bool
) -> None:
    arguments = {
        **STEP,
        "bf16": mixed,
        "use_lora": True,
        "lora_rank": 8,
        "lora_dropout": dropout,
    }
    model = make_model(6, sub_batch_size, checkpointing, unified=False)
    Adapters(model.model, LoraArguments(lora_rank=8, lora_dropout=dropout))
    for layer in model.modules():
        if dropout and isinstance(layer, LoraLayer):
            layer.lora_dropout["default"] = MaskedDropout()
    peak = measured(model, 2, 16, mixed=mixed)
    shape = Shape.of(model.model.config)
    found = memory(shape, arguments, sub_batch_size=sub_batch_size, checkpointing=checkpointing)
    print(f"RATIO {activations(found) / peak:.3f}")
    assert 1.0 <= activations(found) / peak <= 1.2


def test_frozen_weights_have_neither_gradients_nor_moments() -> None:
    """Of bge-m3's 24 layers, rank 32 trains 24 x 32 x (10 x 1024 + 2 x 4096), and the heads."""
    found = memory(BGE_M3, {**USERS, "use_lora": True, "lora_rank": 32})
    trained = 24 * 32 * (10 * 1024 + 2 * 4096) + 1025 * 1025
    assert (found.weights, found.gradients, found.moments) == (4 * BGE_M3.parameters, 4 * trained, 8 * trained)


def activations(found: Memory) -> float:
    """What a step without an optimizer takes beside the weights."""
    return max(found.copies + found.kept + max(found.heads, found.layers), found.ending)


def test_bge_m3_is_counted_parameter_by_parameter() -> None:
    """The embeddings, 24 layers, and the two heads; the published model's own pooler is not trained."""
    assert BGE_M3.parameters == (250_002 + 8194 + 3) * 1024 + 24 * (12 * 1024**2 + 13 * 1024) + 1025 * 1025


def test_states_are_16_bytes_a_parameter() -> None:
    """Weights, gradients and two moments, in float32."""
    found = memory(BGE_M3, USERS)
    assert found.weights + found.moments + found.gradients == 16 * BGE_M3.parameters
    several = memory(BGE_M3, USERS, workers=2)
    assert several.held_gradients == 4 * BGE_M3.parameters  # buckets
    reached = memory(BGE_M3, USERS, reachable=50_002)
    assert found.weights - reached.weights == 4 * 200_000 * 1024
    assert reached.scoring - found.scoring == 4 * 200_000 * 1024  # the whole embedding comes back


@pytest.mark.parametrize(
    ("batch", "checkpointing", "tokens", "peak"),
    [
        (2, True, 2_209, 5.258e9),
        (2, False, 2_209, 6.751e9),
        (2, True, 6_504, 5.501e9),
        (2, False, 6_504, 11.112e9),
    ],
)
def test_an_estimate_is_close_to_what_a_gpu_had_allocated(
    batch: int, checkpointing: bool, tokens: int, peak: float
) -> None:
    """Steps of `python benchmarks/gpu_check.py` on an H200, bf16, 512 positions and 19,900 of the tokens trained.

    Checkpointed, a step of so few tokens takes the most when it ends: almost all gradients, beside one layer.
    """
    shape = dataclasses.replace(BGE_M3, parameters=BGE_M3.parameters - 7_680 * 1024)
    arguments = {**USERS, "per_device_train_batch_size": batch, "gradient_checkpointing": checkpointing}
    texts = Texts(queries=batch, passages=8 * batch, query_length=15, passage_length=512, tokens=tokens)
    found = memory(shape, arguments, texts=texts, reachable=19_900)
    assert 1.0 <= found.training / peak <= 1.05
    assert found.allocated > 6.2e9  # scoring


def test_other_workers_token_vectors_are_not_here() -> None:
    """FlagEmbedding gathers dense vectors only."""
    alone, one_of_8 = (memory(BGE_M3, {**USERS, "negatives_cross_device": True}, workers=workers) for workers in (1, 8))
    assert one_of_8.heads == alone.heads


def test_activations_are_42_times_the_hidden_size_a_token_and_layer() -> None:
    """8 queries and 64 passages of 512 tokens; a checkpointed layer keeps 4, and one of them is there in full."""
    arguments = {**USERS, "per_device_train_batch_size": 8}
    tokens = 72 * 512
    whole = memory(BGE_M3, arguments, checkpointing=False)
    assert whole.kept == tokens * 1024 * (24 * 42 + 5)
    checkpointed = memory(BGE_M3, arguments)
    assert checkpointed.kept == tokens * 1024 * (24 * 4 + 5)
    assert checkpointed.layers == tokens * 1024 * (42 + 20)


def test_deepspeed_in_16_bits_has_weights_and_gradients_in_both() -> None:
    """2 + 2 bytes for the model, 4 + 4 + 8 for the optimizer, which ZeRO splits over the workers from stage 1 on."""
    alone = memory(BGE_M3, {**USERS, "deepspeed": {"zero_optimization": {"stage": 0}}})
    assert alone.weights + alone.gradients + alone.moments == 20 * BGE_M3.parameters
    split = memory(BGE_M3, {**USERS, "deepspeed": {"zero_optimization": {"stage": 1}}}, workers=2)
    assert split.moments == 8 * BGE_M3.parameters


def test_what_is_computed_again_is_what_does_not_fit() -> None:
    """The user's batch fits a card of 24 GB without; eight times as many do with layers, and more in sub-batches."""
    texts = Texts.longest(USERS)
    assert not plan_step(24e9, BGE_M3, USERS, texts=texts).checkpointing
    arguments = {**USERS, "per_device_train_batch_size": 8}
    texts = Texts.longest(arguments)
    plan = plan_step(24e9, BGE_M3, arguments, texts=texts)
    assert (plan.checkpointing, plan.sub_batch_size) == (True, None)
    forbidden = plan_step(24e9, BGE_M3, {**arguments, "gradient_checkpointing": False}, texts=texts)
    assert (forbidden.checkpointing, forbidden.sub_batch_size) == (False, 18)
    less = plan_step(forbidden.bytes, BGE_M3, {**arguments, "gradient_checkpointing": False}, texts=texts)
    assert less.sub_batch_size == 15
    assert less.bytes < forbidden.bytes


def test_the_users_own_sub_batch_is_the_largest() -> None:
    arguments = {**USERS, "sub_batch_size": 4}
    assert plan_step(1e12, BGE_M3, arguments, texts=Texts.longest(arguments)).sub_batch_size == 4


def test_where_nothing_fits_the_smallest_is_tried() -> None:
    arguments = {**USERS, "per_device_train_batch_size": 8}
    plan = plan_step(1e9, BGE_M3, arguments, texts=Texts.longest(arguments))
    assert plan.smallest
    assert (plan.sub_batch_size, plan.checkpointing) == (1, False)


def test_the_longest_batch_is_told_from_the_lengths_of_texts() -> None:
    """16 passages of 100 or 300 tokens, a mean of 200: 3,200, and 4 standard deviations of 4 x 100."""
    queries, passages = Lengths(mean=10, deviation=0, longest=10), Lengths(mean=200, deviation=100, longest=300)
    texts = Texts.likely(USERS, queries, passages)
    assert texts.tokens == 2 * 10 + 3200 + 1600
    rows = [(4, Lengths(mean=100, deviation=0, longest=4096)), (2, Lengths(mean=3000, deviation=0, longest=4096))]
    assert Texts.likely(USERS, queries, passages, rows).tokens == 2 * 3000
    long = Lengths(mean=512, deviation=0, longest=512)
    assert Texts.likely(USERS, long, long) == Texts.longest(USERS)


def test_it_is_known_without_any_library() -> None:
    """Where a search is planned there need be no torch."""
    code = "import sys, trainables.memory.step; print({'torch', 'ray', 'optuna', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
