"""However a step is computed, its losses are the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.m3_fixtures import make_inputs, unified_arguments
from trainables.config import TrialConfig
from trainables.failures import Planned
from trainables.m3.arguments import build_arguments
from trainables.m3.base_models import BaseModels
from trainables.m3.runner import Runner
from trainables.memory import device
from trainables.memory import step as memory_module
from trainables.memory.plan import StepPlan, plan_step
from trainables.memory.shape import Texts
from trainables.memory.step import CONTEXT, memory
from trainables.process import trial_process
from trainables.trial import planning
from trainables.trial.planning import set_plan, step_plan


@pytest.fixture(autouse=True)
def nothing_to_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring takes more than training a model of a few kilobytes."""
    monkeypatch.setattr(memory_module, "_SCORED_TOKENS", 0)
    monkeypatch.setattr(memory_module, "_SCORED_SIMILARITIES", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planning")
    return make_inputs(root, rows=24, dropout=0.0)


@pytest.fixture
def arguments(folder: Path) -> dict[str, Any]:
    return unified_arguments(folder) | {"max_steps": 3, "gradient_checkpointing": True}


@pytest.fixture
def runner(folder: Path, arguments: dict[str, Any], tmp_path: Path) -> Runner:
    with trial_process(tmp_path / "log.txt"):
        return Runner(build_arguments(arguments, str(tmp_path)), BaseModels(), [], folder / "tokens")


def test_a_trial_begins_with_the_largest_way_that_fits(runner: Runner, arguments: dict[str, Any]) -> None:
    whole = step_plan(runner, arguments, 1e12)
    assert (whole.sub_batch_size, whole.checkpointing) == (None, False)
    again = step_plan(runner, arguments, whole.bytes)
    assert (again.sub_batch_size, again.checkpointing, again.smallest) == (None, True, False)
    parts = step_plan(runner, {**arguments, "gradient_checkpointing": False}, whole.bytes)
    assert (parts.sub_batch_size, parts.checkpointing) == (8, False)  # half of 4 queries and 12 passages


def test_only_what_is_trained_is_counted(runner: Runner, arguments: dict[str, Any]) -> None:
    """The embedding has 84 tokens, of which the training data do not contain 20."""
    assert runner.vocabulary is not None
    seen: dict[str, Any] = {}

    def spy(limit: float, shape: Any, values: Any, **known: Any) -> Any:
        seen.update(known, shape=shape, states=memory(shape, values, **known).weights)
        return plan_step(limit, shape, values, **known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "plan_step", spy)
        step_plan(runner, arguments, 1e12)
    trained = sum(parameter.numel() for parameter in runner.model.parameters())
    assert seen["states"] == 4 * trained
    assert seen["shape"].parameters == trained + (seen["shape"].vocab_size - seen["reachable"]) * 16


def planned_texts(arguments: dict[str, Any], folder: Path) -> Texts:
    """Returns the batch that steps are planned for."""
    seen: list[Texts] = []

    def spy(limit: float, shape: Any, values: Any, **known: Any) -> Any:
        seen.append(known["texts"])
        return plan_step(limit, shape, values, **known)

    with trial_process(folder / "log.txt"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "plan_step", spy)
        runner = Runner(build_arguments(arguments, str(folder)), BaseModels(), [], folder / "tokens")
        step_plan(runner, arguments, 1e12)
    return seen[0]


def write_rows(path: Path, rows: int, negative: Callable[[int], str]) -> str:
    """Writes rows whose queries and positives are a word, so of 3 tokens, each with 2 negatives alike."""
    texts = [{"query": f"w{number}", "pos": [f"w{number}"], "neg": [negative(number)] * 2} for number in range(rows)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in texts))
    return str(path)


def words(number: int) -> str:
    """Returns a text of 32 tokens."""
    return " ".join([f"w{number}"] * 30)


def test_a_batch_of_one_source_is_as_long_as_its_rows(arguments: dict[str, Any], tmp_path: Path) -> None:
    """One of 8 batches has 8 rows of 3 + 3 + 2 x 32 tokens, although few of all texts are so long."""
    sources = [
        write_rows(tmp_path / "short.jsonl", 56, lambda number: f"w{number}"),
        write_rows(tmp_path / "long.jsonl", 8, words),
    ]
    changes: dict[str, Any] = {"train_data": sources, "same_dataset_within_batch": True, "small_threshold": 0}
    arguments = {**arguments, **changes, "drop_threshold": 0, "cache_path": str(tmp_path / "cache")}
    del arguments["per_device_train_batch_size"]  # 8 by default; upstream sets it to 1
    found = planned_texts(arguments, tmp_path)
    assert (found.queries, found.passages, found.tokens) == (8, 24, 8 * (3 + 3 + 2 * 32))


def test_a_text_that_goes_with_every_row_is_in_every_row(arguments: dict[str, Any], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 56, lambda _: words(0))
    changes = {"train_data": [rows], "cache_path": str(tmp_path / "cache")}
    assert planned_texts({**arguments, **changes}, tmp_path).tokens == 4 * (3 + 3 + 2 * 32)


@pytest.mark.parametrize("plan", [(None, True), (5, False)], ids=["layers computed again", "sub-batches"])
def test_every_way_trains_to_the_same_weights(
    folder: Path, arguments: dict[str, Any], tmp_path: Path, plan: tuple[int | None, bool]
) -> None:
    found = []
    for sub_batch_size, checkpointing in ((None, False), plan):
        with trial_process(tmp_path / "log.txt"):
            runner = Runner(build_arguments(arguments, str(tmp_path)), BaseModels(), [], folder / "tokens")
            how = StepPlan(sub_batch_size=sub_batch_size, checkpointing=checkpointing, bytes=0.0, smallest=False)
            set_plan(runner, how)
            runner.trainer.train()
            assert bool(runner.model.model.is_gradient_checkpointing) == checkpointing
            found.append({name: tensor.clone() for name, tensor in runner.model.state_dict().items()})
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=0, atol=1e-6, msg=name)


def test_an_error_says_how_its_step_was_planned(
    runner: Runner, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card of which an earlier step could not have what it was planned to take."""
    monkeypatch.setattr(type(runner.training_args), "device", torch.device("cuda"))
    monkeypatch.setattr(planning, "device_bytes", lambda: 8e9)
    limit = step_plan(runner, arguments, 8e9).bytes
    config = TrialConfig(
        name="0001", directory=str(tmp_path), arguments=arguments, eval_data="", metric="", memory_limit=limit
    )
    with pytest.raises(RuntimeError) as raised, planning.planned(runner, config):
        raise RuntimeError("CUDA out of memory")
    found = Planned.of(raised.value)
    assert found is not None
    assert found.bytes < limit
    assert runner.model.checkpoint_layers
    assert runner.data_collator.layout.sub_batch_size is None


def test_a_gpu_that_pytorch_cannot_use_is_no_reason_to_train_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    device.require_gpu(given=False)
    with pytest.raises(RuntimeError, match=r"cannot use it: The NVIDIA driver .* is too old .*; install a PyTorch for"):
        device.require_gpu(given=True)


def test_two_processes_share_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 GB each gets 12, CUDA's own part included: the allocator may have the rest."""
    asked: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    monkeypatch.setattr(device, "_total", lambda: 24e9)
    monkeypatch.setattr(device, "_SHARE", 1.0)
    device.limit_to(0.5)
    assert asked == [0.5 - CONTEXT / 24e9]
    assert device.device_bytes() == 12e9
    with pytest.raises(ValueError, match="a share of a GPU must hold"):
        device.limit_to(0.01)
