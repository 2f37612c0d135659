"""One worker of a group: trains as a test asks and writes what came of it.

usage: python -m tests.m3_worker JOB.json    (RANK, WORLD_SIZE and the other variables of torch.distributed are set)
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Runner

import trainables.rungs
from trainables.base import BaseModels
from trainables.config import RungReport, TrialConfig
from trainables.m3 import Runner, build_arguments
from trainables.process import trial_process
from trainables.trial import run_trial


def losses(runner: EncoderOnlyEmbedderM3Runner) -> list[float]:
    """Trains, and returns the loss of every forward pass."""
    recorded: list[float] = []
    compute_loss = runner.trainer.compute_loss

    def record(*args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(*args, **kwargs)
        recorded.append(float(loss.detach()))
        return loss

    runner.trainer.compute_loss = record
    runner.trainer.train()
    return recorded


def compared(arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns upstream's losses and ours."""
    found = {}
    for name in ("upstream", "ours"):
        with trial_process(folder / f"log-{os.environ['RANK']}.txt"):
            values = arguments if name == "ours" else {**arguments, "sub_batch_size": None}
            built = build_arguments(values, str(folder / name))
            assert built.training.world_size == dist.get_world_size()
            found[name] = losses(
                EncoderOnlyEmbedderM3Runner(*built) if name == "upstream" else Runner(built, BaseModels(), [])
            )
    return found


def trial(config: TrialConfig, killed_after: int | None) -> dict[str, Any]:
    """Returns the reports of a trial, which saves its state every two steps; or kills itself in a step."""
    reports: list[RungReport] = []
    trainables.rungs.SAVE_SECONDS, trainables.rungs.LOOK_EVERY = 0.0, 2

    def progress(step: int, steps: int) -> None:  # noqa: ARG001
        if killed_after is not None and step > killed_after:
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
