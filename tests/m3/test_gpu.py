"""The packed path on a GPU, with PyTorch's own kernels: run with ``-m gpu``."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.m3.test_loss_scaling import OVERFLOWS, STEPS, scaled
from tests.m3.test_m3_parity import UNIFIED, arguments, trained
from tests.support.m3_fixtures import make_model, make_rows
from trainables import varlen
from trainables.m3.arguments import build_arguments
from trainables.m3.base_models import BaseModels
from trainables.m3.runner import Runner
from trainables.process import trial_process

pytestmark = pytest.mark.gpu

LENGTHS = [17, 1, 512, 64, 130]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def projections(dtype: torch.dtype, size: int) -> list[Tensor]:
    torch.manual_seed(0)
    shape = (1, sum(LENGTHS), 4, size)
    return [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]


def attended(parts: list[Tensor], dropout: float = 0.0) -> Tensor:
    kernel = varlen.kernel_of(parts[0].device, parts[0].dtype, parts[0].shape[-1])
    assert kernel is not None
    cu_seqlens = torch.tensor([0, *np.cumsum(LENGTHS)], dtype=torch.int32, device="cuda")
    return kernel(*parts, cu_seqlens=cu_seqlens, longest=max(LENGTHS), dropout=dropout, scaling=None)


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_kernel_attends_as_texts_alone_do(dtype: torch.dtype, size: int) -> None:
    parts = projections(dtype, size)
    exact = [part.detach().double().requires_grad_() for part in parts]
    texts = zip(*(part.transpose(1, 2).split(LENGTHS, 2) for part in exact), strict=True)
    expected = torch.cat([scaled_dot_product_attention(*text) for text in texts], 2).transpose(1, 2)
    grad = torch.randn_like(expected)
    values = attended(parts)
    wanted = [expected, *torch.autograd.grad(expected, exact, grad)]
    found = [values, *torch.autograd.grad(values, parts, grad.to(dtype))]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=TOLERANCE[dtype] * float(theirs.abs().max()))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dropout_is_drawn_from_the_generator(dtype: torch.dtype) -> None:
    parts = projections(dtype, 64)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(attended(parts, dropout=0.5))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    make_model(folder / "model")
    make_rows(folder / "rows.jsonl", scores=True)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        UNIFIED,
        {**UNIFIED, "gradient_checkpointing": True},
        {**UNIFIED, "sentence_pooling_method": "mean"},
        {**UNIFIED, "knowledge_distillation": True, "kd_loss_type": "kl_div"},
    ],
    ids=["dense", "unified", "gradient checkpointing", "mean pooling", "distillation"],
)
def test_first_losses_are_upstreams_in_float32(changes: dict[str, Any], root: Path, tmp_path: Path) -> None:
    """Later ones part: Adam makes steps of what rounding leaves of a 0."""
    values = arguments(root, **changes, max_steps=3, learning_rate=1e-5)
    upstream, ours = (trained(name, values, tmp_path, BaseModels(), double=False) for name in ("upstream", "ours"))
    assert ours == pytest.approx(upstream, rel=1e-4)


@pytest.mark.parametrize("changes", [{"bf16": True}, {"bf16": True, "gradient_checkpointing": True}, {}])
@pytest.mark.parametrize("distilled", [False, True])
def test_a_step_asks_the_device_for_nothing(
    changes: dict[str, Any], distilled: bool, root: Path, tmp_path: Path
) -> None:
    more = {"knowledge_distillation": True, "kd_loss_type": "kl_div"} if distilled else {}
    values = arguments(root, **UNIFIED, **more, **changes, max_steps=1)
    with trial_process(tmp_path / "log.txt"):
        runner = Runner(build_arguments(values, str(tmp_path / "out")), BaseModels(), [], tmp_path / "tokens")
        runner.trainer.train()  # builds what is built once
        model = runner.model
        batch = runner.trainer._prepare_inputs(next(iter(runner.trainer.get_train_dataloader())))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with runner.trainer.compute_loss_context_manager():
                loss = model(**batch).loss
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert loss.isfinite()


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused"])
def test_what_overflows_in_float16_is_skipped_as_upstream_skips_it(optimizer: str, root: Path, tmp_path: Path) -> None:
    """In float64, where nothing overflows but what is made to."""
    values = arguments(root, **UNIFIED, max_steps=STEPS, optim=optimizer, warmup_steps=0, logging_steps=3)
    (theirs, expected, _), (ours, found, _) = (
        scaled(name, values, tmp_path, OVERFLOWS) for name in ("upstream", "ours")
    )
    assert ours.changed == [step not in OVERFLOWS for step in range(STEPS)]
    assert ours.skipped == [1, 2, 0, 1, 0, 0, 0, 1, 2, 0, 0, 0]
    assert (ours.changed, ours.scales, ours.rates) == (theirs.changed, theirs.scales, theirs.rates)
    assert ours.logged == pytest.approx(theirs.logged, rel=1e-6)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-7, atol=1e-9)


def test_a_whole_step_in_float16_asks_the_device_for_nothing(root: Path, tmp_path: Path) -> None:
    """Whether it is skipped stays on the device, too: a fused optimizer looks there."""
    values = arguments(root, **UNIFIED, fp16=True, optim="adamw_torch_fused", max_steps=1)
    with trial_process(tmp_path / "log.txt"):
        runner = Runner(build_arguments(values, str(tmp_path / "out")), BaseModels(), [], tmp_path / "tokens")
        trainer = runner.trainer
        trainer.train()
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.training_step(trainer.model_wrapped, batch)
            trainer.scaling.on_pre_optimizer_step()
            trainer.optimizer.step()
            trainer.scaling.on_optimizer_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert trainer.scaling.is_on
        trainer.check_loss()


def test_layers_are_checkpointed_only_where_memory_is_wanting(root: Path, tmp_path: Path) -> None:
    found = []
    for checkpoint_layers in (True, False):
        with trial_process(tmp_path / "log.txt"):
            values = arguments(root, **UNIFIED, gradient_checkpointing=True, max_steps=2)
            runner = Runner(build_arguments(values, str(tmp_path / "out")), BaseModels(), [])
            runner.model.checkpoint_layers = checkpoint_layers
            runner.trainer.train()
            found.append(float(runner.trainer.loss_sum))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_compiled_layers_train_and_score_as_written_ones(root: Path, tmp_path: Path) -> None:
    losses, states = [], []
    for compiled in (False, True):
        with trial_process(tmp_path / "log.txt"):
            values = arguments(root, **UNIFIED, bf16=True, max_steps=4, learning_rate=1e-6)
            built = build_arguments(values, str(tmp_path / "out"))
            runner = Runner(built, BaseModels(), [], tmp_path / "tokens", compiled)
            runner.trainer.train()
            losses.append(float(runner.trainer.loss_sum))
            with runner.whole_model() as model, torch.no_grad():
                states.append(model.model(torch.arange(4, 12, device="cuda")[None]).last_hidden_state)
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-2)


def test_a_state_goes_on_where_other_devices_are_seen(root: Path, tmp_path: Path) -> None:
    """Upstream's part of it is a list, by the devices' numbers, which it cannot use where there are fewer."""
    with trial_process(tmp_path / "log.txt"):
        runner = Runner(build_arguments(arguments(root, max_steps=1), str(tmp_path / "out")), BaseModels(), [])
        trainer = runner.trainer
        trainer.train()
        torch.cuda.manual_seed(3)
        trainer.capture_state(tmp_path)
        expected = torch.cuda.get_rng_state()
        torch.save(
            torch.load(tmp_path / "rng_state.pth", weights_only=False) | {"cuda": []}, tmp_path / "rng_state.pth"
        )
        torch.cuda.manual_seed(4)
        trainer._cuda_draws = torch.load(tmp_path / "position-0.pt", weights_only=True)["cuda"]
        trainer._load_rng_state(str(tmp_path))
        assert torch.equal(torch.cuda.get_rng_state(), expected)
