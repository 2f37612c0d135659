"""float16 under a loss scaler: what overflows is skipped as under FlagEmbedding's runner, and ends a trial in time."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import AutocastKwargs
from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Runner
from torch import Tensor, nn
from transformers import TrainerCallback

from tests.m3.test_m3_parity import UNIFIED, arguments
from tests.support.m3_fixtures import make_inputs
from tests.support.tensors import tensor_hash
from trainables.config import RungReport, TrialConfig, TrialInterrupted
from trainables.deepspeed_config import DS_STAGE0
from trainables.failures import NonFiniteLoss, failure_kind
from trainables.m3.arguments import build_arguments
from trainables.m3.base_models import BaseModels
from trainables.m3.loss_scaling import SKIPPED_FOR_GOOD
from trainables.m3.runner import Runner
from trainables.m3.tokens import sorted_folders
from trainables.process import process_group, trial_process
from trainables.trial.trial import run_trial

STEPS = 12
OVERFLOWS: Mapping[int, str] = {0: "inf", 1: "inf", 3: "nan", 7: "gradient", 8: "inf"}
"""What goes wrong in which forward pass, counted from 0."""
LEFT_OUT = 4  # a loss whose gradient overflows is finite itself


class Overflowing:
    """A model's forward hook: spoils a loss, or its gradient alone, in some of the passes."""

    def __init__(self, overflows: Mapping[int, str], trainer: Any) -> None:
        self._overflows, self._trainer, self._passes = overflows, trainer, 0

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        what = self._overflows.get(getattr(self._trainer, "batches", self._passes))
        self._passes += 1
        if what == "gradient":
            output.loss.register_hook(lambda gradient: gradient * math.inf)
        elif what is not None:
            output.loss = output.loss * float(what)
        return output


@dataclass(kw_only=True)
class Noted(TrainerCallback):
    """What a training shows of itself after each step."""

    runner: Any = None
    scales: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    changed: list[bool] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    logged: list[float] = field(default_factory=list)
    before: Any = None

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.before = self._weight().clone()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        trainer = self.runner.trainer
        self.scales.append(trainer.accelerator.scaler.get_scale())
        self.rates.append(trainer.lr_scheduler.get_last_lr()[0])
        self.changed.append(not torch.equal(self.before, self._weight()))
        if hasattr(trainer, "scaling"):
            self.skipped.append(int(trainer.scaling.skipped))

    def on_log(self, *_: Any, **values: Any) -> None:
        if "loss" in values["logs"]:
            self.logged.append(values["logs"]["loss"])

    def _weight(self) -> Tensor:
        weight: Tensor = self.runner.model.colbert_linear.weight.detach()
        return weight


def scale_on_cpu(trainer: Any, scale: float = 65536.0) -> None:
    """Trains by a scaler as Accelerate does on a GPU, which it leaves out on a CPU."""
    accelerator = trainer.accelerator
    assert accelerator.mixed_precision == "fp16"
    if accelerator.scaler is None:
        accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=scale), True


def scaled(
    name: str, values: dict[str, Any], folder: Path, overflows: Mapping[int, str], *, double: bool = True
) -> tuple[Noted, dict[str, Tensor], Any]:
    """Trains upstream or ours with overflows; returns what was noted, the weights and the runner."""
    noted = Noted()
    with trial_process(folder / f"{name}.txt"), process_group(), sorted_folders():
        # upstream's own default, which ours replaces by something that does not wait
        more = {"logging_nan_inf_filter": True} if name == "upstream" else {}
        built = build_arguments({**values, **more, "fp16": True}, str(folder / name))
        runner = EncoderOnlyEmbedderM3Runner(*built) if name == "upstream" else Runner(built, BaseModels(), [])
        scale_on_cpu(runner.trainer)
        if double:
            runner.model.double()
            runner.trainer.accelerator.autocast_handler = AutocastKwargs(enabled=False)
        noted.runner = runner
        runner.trainer.add_callback(noted)
        runner.model.register_forward_hook(Overflowing(overflows, runner.trainer))
        runner.trainer.train()
        return noted, {key: value.detach().cpu() for key, value in runner.model.state_dict().items()}, runner


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scaling")
    return make_inputs(folder, rows=60)


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused"])
@pytest.mark.parametrize("logging_steps", [1, 3])
def test_what_overflows_is_skipped_as_upstream_skips_it(
    optimizer: str, logging_steps: int, root: Path, tmp_path: Path
) -> None:
    values = arguments(root, **UNIFIED, max_steps=STEPS, optim=optimizer, warmup_steps=0)
    values["logging_steps"] = logging_steps
    theirs, expected, _ = scaled("upstream", values, tmp_path, OVERFLOWS)
    ours, found, runner = scaled("ours", values, tmp_path, OVERFLOWS)

    assert ours.changed == [step not in OVERFLOWS for step in range(STEPS)]
    assert ours.skipped == [1, 2, 0, 1, 0, 0, 0, 1, 2, 0, 0, 0]
    assert ours.scales == [65536 / 2**count for count in (1, 2, 2, 3, 3, 3, 3, 4, 5, 5, 5, 5)]
    assert (ours.changed, ours.scales, ours.rates) == (theirs.changed, theirs.scales, theirs.rates)
    assert ours.logged == pytest.approx(theirs.logged, rel=1e-6)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-7, atol=1e-9)
    assert int(runner.trainer.left_out) == LEFT_OUT
    runner.trainer.check_loss()
    assert math.isfinite(runner.trainer.take_mean_loss())


@pytest.fixture
def overflowing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[int, str]], None]:
    """Lets the trials of a test train under a scaler, with overflows."""
    load_trainer = Runner.load_trainer

    def start(overflows: Mapping[int, str]) -> None:
        def load(runner: Runner) -> Any:
            trainer = load_trainer(runner)
            scale_on_cpu(trainer, 1024.0)  # by which nothing else overflows
            runner.model.register_forward_hook(Overflowing(overflows, trainer))
            return trainer

        monkeypatch.setattr(Runner, "load_trainer", load)

    return start


def trial(root: Path, directory: Path, rungs: tuple[float, ...] = (0.5, 1.0), **changes: Any) -> TrialConfig:
    values = arguments(root, **UNIFIED, fp16=True, warmup_steps=0, **{"max_steps": STEPS, **changes})
    return TrialConfig(
        name="0007",
        directory=str(directory),
        arguments=values,
        eval_data=str(root / "eval"),
        metric="dense.ndcg_at_10",
        rungs=rungs,
    )


def run(config: TrialConfig, until: int | None = None) -> list[RungReport]:
    reports: list[RungReport] = []
    run_trial(config, lambda report: not reports.append(report), progress=lambda step, _: step != until)
    return reports


def test_a_trial_survives_what_is_skipped_and_its_loss_leaves_it_out(
    overflowing: Callable[[Mapping[int, str]], None], root: Path, tmp_path: Path
) -> None:
    """A learning rate of 0 changes no weight, so that the other losses are those of a training without overflows."""
    overflowing({})
    (whole,) = run(trial(root, tmp_path / "whole", (1.0,), learning_rate=0, max_steps=3))
    singles = [run(trial(root, tmp_path / f"{steps}", (1.0,), learning_rate=0, max_steps=steps)) for steps in (1, 2)]
    first, two = (reports[0].loss for reports in singles)
    assert whole.loss is not None
    assert first is not None
    assert two is not None
    overflowing({1: "inf"})
    (found,) = run(trial(root, tmp_path / "found", (1.0,), learning_rate=0, max_steps=3))
    second = 2 * two - first
    assert found.loss == pytest.approx((3 * whole.loss - second) / 2, rel=1e-3)


def test_a_trial_stopped_between_skipped_steps_goes_on_as_if_it_had_not_been(
    overflowing: Callable[[Mapping[int, str]], None], root: Path, tmp_path: Path
) -> None:
    overflowing(OVERFLOWS)
    straight = run(trial(root, tmp_path / "straight", (1.0,)))
    config = trial(root, tmp_path / "stopped", (1.0,))
    with pytest.raises(TrialInterrupted):
        run(config, until=8)
    resumed = run(config)

    assert [report.loss for report in resumed] == [report.loss for report in straight]
    hashes = [
        tensor_hash({"colbert": torch.load(tmp_path / name / "checkpoint" / "colbert_linear.pt")["weight"]})
        for name in ("straight", "stopped")
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.integration
@pytest.mark.parametrize("what", ["inf", "gradient"])
def test_a_trial_ends_where_no_scale_helps(
    what: str, overflowing: Callable[[Mapping[int, str]], None], root: Path, tmp_path: Path
) -> None:
    """From its third step on everything overflows; one step less, and it goes on."""
    steps = SKIPPED_FOR_GOOD + 10
    overflowing(dict.fromkeys(range(2, steps), what))
    with pytest.raises(NonFiniteLoss, match=f"{SKIPPED_FOR_GOOD} steps up to step {SKIPPED_FOR_GOOD + 2}") as caught:
        run(trial(root, tmp_path / "ends", (1.0,), max_steps=steps))
    assert failure_kind(caught.value) == "non_finite"

    overflowing(dict.fromkeys(range(2, SKIPPED_FOR_GOOD + 1), what))
    (report,) = run(trial(root, tmp_path / "goes on", (1.0,), max_steps=steps))
    assert report.loss is not None
    assert math.isfinite(report.loss)


def test_a_rung_without_a_finite_loss_ends_a_trial(
    overflowing: Callable[[Mapping[int, str]], None], root: Path, tmp_path: Path
) -> None:
    overflowing(dict.fromkeys(range(6, STEPS), "nan"))
    reports: list[RungReport] = []
    with pytest.raises(NonFiniteLoss, match="the mean training loss must be finite"):
        run_trial(trial(root, tmp_path / "trial"), lambda report: not reports.append(report))
    assert [report.rung for report in reports] == [1]


@pytest.fixture(scope="module")
def one_group() -> Iterator[None]:
    """DeepSpeed knows one process group in the life of a process."""
    with process_group():
        yield


@pytest.fixture
def deepspeeds_half(one_group: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """DeepSpeed asks for float16 in hardware, where it would be quick; torch computes it on every CPU."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    monkeypatch.setattr(CPU_Accelerator, "is_fp16_supported", lambda _: True)


def deepspeed(stage: int) -> dict[str, Any]:
    """Returns FlagEmbedding's settings with an optimizer that need not be compiled, from a scale of 4."""
    settings = json.loads(DS_STAGE0.read_text())
    settings["zero_optimization"] = {"stage": stage}
    settings["optimizer"]["params"]["torch_adam"] = True
    settings["fp16"] |= {"initial_scale_power": 2, "hysteresis": 1}
    return dict(settings)


class DeepSpeeds(TrainerCallback):
    """DeepSpeed's scale after each step."""

    def __init__(self) -> None:
        self.scales: list[float] = []
        self.runner: Any = None

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.scales.append(self.runner.trainer.model_wrapped.optimizer.loss_scale)


@pytest.mark.integration  # the first DeepSpeed of a machine compiles its communication
@pytest.mark.usefixtures("deepspeeds_half")
@pytest.mark.parametrize("stage", [0, 1])
def test_deepspeeds_scaler_skips_as_it_does_under_upstream(stage: int, root: Path, tmp_path: Path) -> None:
    values = arguments(root, **UNIFIED, max_steps=6, fp16=True, deepspeed=deepspeed(stage), warmup_steps=0)
    found = {}
    for name in ("upstream", "ours"):
        noted = DeepSpeeds()
        with trial_process(tmp_path / f"{name}.txt"), process_group(), sorted_folders():
            built = build_arguments(values, str(tmp_path / name))
            runner = EncoderOnlyEmbedderM3Runner(*built) if name == "upstream" else Runner(built, BaseModels(), [])
            noted.runner = runner
            runner.trainer.add_callback(noted)
            runner.model.register_forward_hook(Overflowing({1: "inf", 3: "gradient"}, runner.trainer))
            runner.trainer.train()
            found[name] = (noted.scales, runner.trainer.model_wrapped.skipped_steps)
    assert found["ours"] == found["upstream"] == ([4, 2, 2, 1, 1, 1], 2)


@pytest.mark.integration  # the first DeepSpeed of a machine compiles its communication
@pytest.mark.usefixtures("deepspeeds_half")
@pytest.mark.parametrize(("stage", "message"), [(0, f"{SKIPPED_FOR_GOOD} steps"), (1, "at the lowest loss scale")])
def test_deepspeeds_scaler_ends_a_trial_where_no_scale_helps(
    stage: int, message: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the lowest scale ZeRO raises, and the others skip on."""
    load_trainer = Runner.load_trainer

    def load(runner: Runner) -> Any:
        trainer = load_trainer(runner)
        runner.model.register_forward_hook(Overflowing(dict.fromkeys(range(1, 60), "inf"), trainer))
        return trainer

    monkeypatch.setattr(Runner, "load_trainer", load)
    with pytest.raises(NonFiniteLoss, match=message) as caught:
        run(trial(root, tmp_path / "trial", (1.0,), max_steps=60, deepspeed=deepspeed(stage)))
    assert failure_kind(caught.value) == "non_finite"
