"""One worker of a group: trains as a test asks and writes what came of it.

usage: python -m tests.support.m3_worker JOB.json  (RANK, WORLD_SIZE and the like of torch.distributed are set)
"""

import json
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Runner
from transformers import TrainerCallback

import trainables.trial.rungs
import trainables.trial.saving
from trainables.config import RungReport, TrialConfig
from trainables.m3.arguments import build_arguments
from trainables.m3.base_models import BaseModels
from trainables.m3.runner import Runner
from trainables.process import trial_process
from trainables.trial.trial import run_trial


class FirstGradients(TrainerCallback):
    """The gradients that the first optimizer step gets."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, **given: Any) -> None:
        if not self.found:
            named = [(name.removeprefix("module."), value.grad) for name, value in given["model"].named_parameters()]
            self.found = {name: gradient.clone() for name, gradient in named if gradient is not None}


def losses(runner: EncoderOnlyEmbedderM3Runner, gradients: FirstGradients) -> list[float]:
    """Trains, and returns the loss of every forward pass."""
    recorded: list[float] = []
    runner.trainer.add_callback(gradients)
    compute_loss = runner.trainer.compute_loss

    def record(*args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(*args, **kwargs)
        recorded.append(float(loss.detach()))
        return loss

    runner.trainer.compute_loss = record
    runner.trainer.train()
    return recorded


def compared(arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns upstream's losses and ours, in float64, and the largest relative difference of a parameter's gradient."""
    found: dict[str, Any] = {}
    gradients = {name: FirstGradients() for name in ("upstream", "ours")}
    for name in ("upstream", "ours"):
        with trial_process(folder / f"log-{os.environ['RANK']}.txt"):
            values = arguments if name == "ours" else {**arguments, "sub_batch_size": None}
            built = build_arguments(values, str(folder / name))
            assert built.training.world_size == dist.get_world_size()
            runner = EncoderOnlyEmbedderM3Runner(*built) if name == "upstream" else Runner(built, BaseModels(), [])
            runner.model.double()
            found[name] = losses(runner, gradients[name])
    upstream, ours = (gradients[name].found for name in ("upstream", "ours"))
    assert upstream.keys() == ours.keys()
    # the bias of the keys moves no score: its gradient is 0 but for rounding
    moved = {name: value for name, value in upstream.items() if value.abs().max() > 1e-12}
    found["gradient"] = max(
        float((ours[name] - value).abs().max() / value.abs().max()) for name, value in moved.items()
    )
    return found


def trial(config: TrialConfig, killed_after: int | None) -> dict[str, Any]:
    """Returns the reports of a trial, which saves its state every two steps; or kills itself in a step."""
    reports: list[RungReport] = []
    trainables.trial.rungs.LOOK_EVERY = 2
    trainables.trial.saving.SAVE_SECONDS = trainables.trial.saving.SAVE_SHARE = 0.0

    def progress(step: int, steps: int) -> None:  # noqa: ARG001
        if killed_after is not None and step > killed_after:
            for thread in threading.enumerate():
                if thread.name == "saving":
                    thread.join()
            dist.barrier()
            os.kill(os.getpid(), signal.SIGKILL)

    run_trial(config, lambda report: not reports.append(report), progress=progress)
    return {"reports": [{**report.to_dict(), "seconds": None} for report in reports]}


def main() -> None:
    """Does the job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    dist.init_process_group("gloo")
    folder = Path(job["folder"])
    if "trial" in job:
        config = TrialConfig.from_dict(job["trial"])
        if "own_directories" in job:
            config = replace(config, directory=f"{config.directory}-of-{dist.get_rank()}")
        result = trial(config, job.get("killed_after"))
    else:
        result = compared(job["arguments"], folder)
    (folder / f"result-{dist.get_rank()}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
