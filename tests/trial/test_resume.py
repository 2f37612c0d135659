"""A trial that is killed and taken up again ends as one that was not."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.m3_fixtures import make_inputs, unified_arguments
from tests.support.tensors import tensor_hash
from trainables.config import RungReport, TrialConfig, TrialInterrupted
from trainables.trial import saving
from trainables.trial.states import States, config_hash

CHILD = """
import json, os, signal, sys, threading
import trainables.trial.rungs, trainables.trial.saving
from trainables.config import TrialConfig
from trainables.trial.trial import run_trial
trainables.trial.rungs.LOOK_EVERY = 10
trainables.trial.saving.SAVE_SECONDS = trainables.trial.saving.SAVE_SHARE = 0.0
stop_at = int(sys.argv[2])
def progress(step, steps):
    if step == stop_at + 1:
        [thread.join() for thread in threading.enumerate() if thread.name == "saving"]
        os.kill(os.getpid(), signal.SIGKILL)
run_trial(TrialConfig.from_dict(json.loads(sys.argv[1])), lambda report: True, progress=progress)
"""
"""Runs a trial and kills itself in the step after `stop_at`."""

LORA = {"use_lora": True, "lora_rank": 4, "lora_alpha": 8}
UNIFIED = {"unified_finetuning": True, "use_self_distill": True, "self_distill_start_step": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    return make_inputs(root, rows=52, dropout=0.1)


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> TrialConfig:
    return TrialConfig(
        name="0007",
        directory=str(tmp_path / "trials" / "0007"),
        arguments=unified_arguments(folder) | {"max_steps": 20, **UNIFIED},
        eval_data=str(folder / "eval"),
        metric="dense.ndcg_at_10",
        rungs=(1.0,),
    )


def run(config: TrialConfig, stop_at: int = 1000) -> int:
    """Runs a trial in a process of its own; returns how it ended."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, json.dumps(config.to_dict()), str(stop_at)]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    print(done.stderr[-3000:])
    return done.returncode


def weights(config: TrialConfig) -> dict[str, torch.Tensor]:
    checkpoint = Path(config.directory) / "checkpoint"
    heads = torch.load(checkpoint / "colbert_linear.pt", weights_only=True)
    return {**load_file(checkpoint / "model.safetensors"), **heads}


def reports(config: TrialConfig) -> list[dict[str, Any]]:
    """Returns metrics.jsonl without the seconds."""
    lines = (Path(config.directory) / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]


def run_here(config: TrialConfig) -> int:
    """Runs a trial in this process."""
    from trainables.trial.trial import run_trial

    run_trial(config, lambda _: True)
    return 0


def check_killed_equals_straight(
    config: TrialConfig, stop_at: int, run_whole: Callable[[TrialConfig], int] = run
) -> None:
    straight = replace(config, directory=config.directory + "-straight")
    assert run_whole(straight) == 0
    assert run(config, stop_at) == -signal.SIGKILL
    assert (Path(config.directory) / "resume").is_dir()
    assert run_whole(config) == 0

    assert reports(config) == reports(straight)
    assert tensor_hash(weights(config)) == tensor_hash(weights(straight))


@pytest.mark.integration
def test_killed_and_resumed_equals_straight(config: TrialConfig) -> None:
    """13 batches an epoch, so the state of step 10 is in the first epoch and the end in the second.

    The slow tests below resume in a process of its own, too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process that is killed
    try:
        check_killed_equals_straight(config, stop_at=10, run_whole=run_here)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_adapters_killed_and_resumed_equal_straight(config: TrialConfig) -> None:
    """Through a rung, at which they are merged to be scored, and taken out again."""
    lora = replace(config, arguments={**config.arguments, **LORA}, rungs=(0.25, 0.75, 1.0))
    check_killed_equals_straight(lora, stop_at=10)


@pytest.mark.parametrize("changes", [{}, LORA], ids=["whole", "adapters"])
def test_asked_to_stop_and_resumed_equals_straight(config: TrialConfig, changes: dict[str, Any]) -> None:
    """As Ctrl-C asks: the state of the step at hand is saved, whatever its age."""
    from trainables.trial.trial import run_trial

    config = replace(config, arguments={**config.arguments, **changes}, rungs=(0.25, 1.0))
    straight = replace(config, directory=config.directory + "-straight")
    run_trial(straight, lambda _: True)
    with pytest.raises(TrialInterrupted, match="stopped at step 7"):
        run_trial(config, lambda _: True, progress=lambda step, _: step != 7)
    assert [path.name for path in (Path(config.directory) / "resume").glob("0*")] == ["000000007"]
    steps = list[int]()
    run_trial(config, lambda _: True, progress=lambda step, _: steps.append(step))
    assert steps[0] == 8
    assert reports(config) == reports(straight)
    assert tensor_hash(weights(config)) == tensor_hash(weights(straight))


def test_a_rung_that_is_passed_again_ends_its_loss(config: TrialConfig) -> None:
    """The state is of step 7, the rung of step 10: the next one's loss is of steps 11 to 20, the second time too."""
    from trainables.trial.trial import run_trial

    def break_down(step: int, _: int) -> bool:
        if step == 12:
            raise RuntimeError("broken")
        return True

    config = replace(config, rungs=(0.5, 1.0))
    straight = replace(config, directory=config.directory + "-straight")
    run_trial(straight, lambda _: True)
    with pytest.raises(TrialInterrupted):
        run_trial(config, lambda _: True, progress=lambda step, _: step != 7)
    with pytest.raises(RuntimeError, match="broken"):
        run_trial(config, lambda _: True, progress=break_down)
    assert len(reports(config)) == 1
    run_trial(config, lambda _: True)
    assert reports(config) == reports(straight)


@pytest.mark.parametrize("changes", [{}, LORA], ids=["whole", "adapters"])
def test_paused_at_a_rung_and_promoted_equals_straight(
    config: TrialConfig, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is paused is on disk when the trial asks, and what was trained and scored before is not done again."""
    from trainables.trial.trial import run_trial

    monkeypatch.setattr(saving, "PAUSE_SECONDS", 0.0)
    config = replace(config, arguments={**config.arguments, **changes}, rungs=(0.25, 1.0), pauses=True)
    straight = replace(config, directory=config.directory + "-straight", pauses=False)
    run_trial(straight, lambda _: True)
    found: list[str] = []

    def pause(_: RungReport) -> bool:
        found.extend(path.name for path in (Path(config.directory) / "resume").glob("0*"))
        return False

    run_trial(config, pause)
    assert found == ["000000005"]
    steps, told = list[int](), list[int]()
    run_trial(config, lambda rung: not told.append(rung.rung), progress=lambda step, _: steps.append(step))
    assert (steps[0], told) == (6, [1, 2])
    assert reports(config) == reports(straight)
    assert tensor_hash(weights(config)) == tensor_hash(weights(straight))


@pytest.mark.parametrize(("pauses", "seconds"), [(False, 0.0), (True, 1000.0)], ids=["ends", "cheaper anew"])
def test_a_trial_that_is_stopped_leaves_no_state_that_is_not_worth_it(
    config: TrialConfig, pauses: bool, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainables.trial.trial import run_trial

    monkeypatch.setattr(saving, "PAUSE_SECONDS", seconds)
    run_trial(replace(config, rungs=(0.25, 1.0), pauses=pauses), lambda _: False)
    assert list((Path(config.directory) / "resume").glob("0*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"same_dataset_within_batch": True},
        {"same_dataset_within_batch": True, "max_steps": 32},
        {"gradient_accumulation_steps": 2},
        {"max_steps": 32},
        {"num_train_epochs": 2, "max_steps": -1, "per_device_train_batch_size": 5, "dataloader_drop_last": True},
    ],
    ids=["same dataset", "same dataset, second epoch", "accumulation", "second epoch", "end of an epoch"],
)
def test_killed_and_resumed_elsewhere(config: TrialConfig, changes: dict[str, Any]) -> None:
    check_killed_equals_straight(replace(config, arguments={**config.arguments, **changes}), stop_at=10)


DEEPSPEED = {
    "zero_optimization": {"stage": 0},
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 12, "loss_scale_window": 1000},
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_min_lr": "auto",
            "warmup_max_lr": "auto",
            "warmup_num_steps": "auto",
            "total_num_steps": "auto",
        },
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("own", [True, False], ids=["its own optimizer", "transformers' optimizer"])
def test_killed_and_resumed_with_deepspeed(config: TrialConfig, own: bool) -> None:
    """DeepSpeed compiles its optimizer first; without one in its settings it takes transformers' AdamW."""
    settings = {name: value for name, value in DEEPSPEED.items() if own or name not in ("optimizer", "scheduler")}
    arguments = {**config.arguments, "deepspeed": settings, "warmup_steps": 0.1}
    check_killed_equals_straight(replace(config, arguments=arguments), stop_at=10)


def test_newest_broken_state_falls_back_to_the_one_before(tmp_path: Path, config: TrialConfig) -> None:
    states = States(tmp_path / "resume", config)
    for step in (10, 20, 30):
        states.save(step, lambda _: {"weights": torch.arange(3)})
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == ["000000020", "000000030"]

    assert states.newest() == tmp_path / "resume" / "000000030"
    (tmp_path / "resume" / "000000030" / "weights").write_text("some wei")
    assert states.newest() == tmp_path / "resume" / "000000020"
    (tmp_path / "resume" / "000000020" / "manifest.json").unlink()
    assert states.newest() is None


def test_saves_that_were_broken_off_leave_nothing_for_the_next(tmp_path: Path, config: TrialConfig) -> None:
    """A disk that is full stays full where each attempt leaves what it had written."""
    states, folder = States(tmp_path / "resume", config), tmp_path / "resume"
    states.begin()

    def full(state: Path) -> dict[str, Any]:
        (state / "weights").write_bytes(b"0" * 1000)
        raise OSError(errno.ENOSPC, "No space left on device")

    for step in (50, 100, 150):
        with pytest.raises(OSError, match="No space left"):
            states.save(step, full)
    assert [path.name for path in folder.glob(".*")] == [".150.tmp"]
    states.save(200, lambda _: {"weights": torch.zeros(3)})
    assert sorted(path.name for path in folder.iterdir()) == ["000000200", "config.sha256"]

    with pytest.raises(OSError, match="No space left"):
        states.save(250, full)
    assert States(folder, config).newest() == folder / "000000200"  # a trial that is taken up
    assert [path.name for path in folder.glob(".*")] == []


def test_states_of_another_configuration_are_not_used(tmp_path: Path, config: TrialConfig) -> None:
    States(tmp_path / "resume", config).save(10, lambda _: {})
    other = replace(config, arguments={**config.arguments, "learning_rate": 2e-3})
    assert States(tmp_path / "resume", other).newest() is None


def test_a_state_of_other_adapters_is_not_taken_up(tmp_path: Path, config: TrialConfig) -> None:
    lora = replace(config, arguments={**config.arguments, **LORA})
    States(tmp_path / "resume", lora).save(10, lambda _: {})
    assert States(tmp_path / "resume", lora).newest() is not None
    for changes in ({"lora_rank": 8}, {"use_lora": False}, {"target_modules": ["query"]}):
        other = replace(lora, arguments={**lora.arguments, **changes})
        assert States(tmp_path / "resume", other).newest() is None


def test_sub_batch_size_does_not_change_what_is_computed(config: TrialConfig) -> None:
    halved = replace(config, arguments={**config.arguments, "sub_batch_size": 4})
    assert config_hash(halved) == config_hash(config)


def trained_again(config: TrialConfig) -> tuple[list[RungReport], list[int]]:
    """Runs a trial in this process; returns its reports and the steps that it trained."""
    from trainables.trial.trial import run_trial

    found, steps = list[RungReport](), list[int]()
    run_trial(config, lambda report: not found.append(report), progress=lambda step, _: steps.append(step))
    return found, steps


@pytest.mark.parametrize("saved", [False, True], ids=["too short for a state", "with a state"])
def test_a_trained_trial_that_nobody_heard_of_only_reports_again(config: TrialConfig, saved: bool) -> None:
    """As when a search is told to end while the last rung is scored: the worker goes on to its end, unheard."""
    found, steps = trained_again(config)
    assert steps[-1] == 20
    if saved:
        States(Path(config.directory) / "resume", config).save(20, lambda _: {})
    before = weights(config)
    assert trained_again(config) == (found, [])
    assert tensor_hash(weights(config)) == tensor_hash(before)


def test_a_trained_trial_of_another_configuration_is_trained_again(config: TrialConfig) -> None:
    trained_again(config)
    other = replace(config, arguments={**config.arguments, "learning_rate": 2e-3})
    assert trained_again(other)[1][-1] == 20


def test_a_state_of_another_number_of_workers_is_not_taken_up(
    config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = config_hash(config)
    monkeypatch.setattr("trainables.trial.states.world_size", lambda: 2)
    assert config_hash(config) != one


def test_a_trained_trial_without_its_weights_is_trained_again(config: TrialConfig) -> None:
    trained_again(config)
    shutil.rmtree(Path(config.directory) / "checkpoint")
    assert trained_again(config)[1][-1] == 20
