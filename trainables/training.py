"""Trains a trial through the runner, from its start or from a state; or scores a checkpoint."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import torch

from trainables.base import BaseModels
from trainables.config import Progress, Report, RungReport, TrialConfig
from trainables.files import write_text
from trainables.m3 import Runner, build_arguments, load_model
from trainables.process import extensions_folder, process_group, rank, remove_stale_build_locks, world_size
from trainables.records import Clock, read_records, write_record
from trainables.resume import States
from trainables.rungs import Judge, Rungs, agree


def train(config: TrialConfig, report: Report, base: BaseModels, progress: Progress | None) -> None:
    """Trains a trial to its last rung, or to the one where `report` stops it."""
    clock = Clock()
    folder = Path(config.directory)
    states = States(folder / "resume", config)
    state = states.newest()
    done = read_records(folder) if state else _start_anew(folder)
    if not _repeat(done, report, config):
        states.remove()
        return
    values = config.arguments
    if values.get("deepspeed"):
        remove_stale_build_locks(extensions_folder())
    alone = values.get("deepspeed") or values.get("negatives_cross_device")
    with process_group() if alone else nullcontext():
        arguments = build_arguments(values, config.directory)
        training = arguments.training
        assert training.world_size == world_size(), "transformers must see every worker of the group"
        # same_dataset_within_batch overwrites the argument, so the rows in a step are counted before
        rows = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
        rungs = Rungs(config, report, progress, clock, rows, states)
        runner = Runner(arguments, base, [rungs], _token_cache(config))
        rungs.runner = runner
        rungs.judge = Judge(config, arguments, runner.tokenizer, base)
        if state is None:
            runner.trainer.train()
        else:
            clock.go_on_from(done[-1].seconds if done else {})
            rungs.go_on_from(done)
            runner.trainer.resume(state)
    states.remove()


def _start_anew(folder: Path) -> list[RungReport]:
    """Forgets what a trial of the same name has written."""
    agree(True)  # no worker may still have to look
    if rank() == 0:
        for name in ("checkpoint", "resume"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("metrics.jsonl", "dev.json"):
            (folder / name).unlink(missing_ok=True)
    return []


def _repeat(done: list[RungReport], report: Report, config: TrialConfig) -> bool:
    """Reports again what was reported before a trial was interrupted; returns whether there is anything left to do."""
    return all(agree(report(record)) for record in done) and len(done) < len(config.rungs)


def _token_cache(config: TrialConfig) -> Path:
    """Returns RUN/data/tokens, for a trial's folder of RUN/trials/NAME."""
    return Path(config.directory).parents[1] / "data" / "tokens"


def score(config: TrialConfig, report: Report, base: BaseModels) -> None:
    """Scores the base model, or the checkpoint named in the configuration, without training."""
    clock = Clock()
    values = dict(config.arguments)
    if config.checkpoint is not None:
        values["model_name_or_path"] = config.checkpoint
        base = BaseModels(scorers=base.scorers)
    for name in ("deepspeed", "negatives_cross_device"):
        values.pop(name, None)
    arguments = build_arguments(values, config.directory)
    torch.manual_seed(arguments.training.seed)
    tokenizer, model = load_model(arguments, base)
    model.to(arguments.training.device)
    judge = Judge(config, arguments, tokenizer, base)
    folder = Path(config.directory)
    with clock.measure("scoring"):
        is_final = config.split == "test"
        scores = judge.final_scores(model, folder / "mteb.json") if is_final else judge.scores(model)
    if rank() == 0:
        write_text(folder / f"{config.split}.json", scores.to_json())
    record = RungReport(
        rung=0,
        fraction=0.0,
        step=0,
        examples=0,
        loss=None,
        value=scores.means[config.metric],
        scores=scores.means,
        last=True,
        seconds=clock.seconds,
    )
    report(write_record(folder, record))
