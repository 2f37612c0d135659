"""Trains a trial through the runner, from its start or from a state."""

from contextlib import nullcontext
from pathlib import Path

import torch.distributed as dist

from trainables.config import Progress, Report, RungReport, TrialConfig
from trainables.files import remove_folder, settle_folder
from trainables.m3.arguments import Arguments, build_arguments
from trainables.m3.base_models import BaseModels
from trainables.m3.runner import Runner
from trainables.names import CHECKPOINT, METRICS, RESUME, scores_file
from trainables.process import (
    agree,
    extensions_folder,
    name_architectures_plainly,
    process_group,
    rank,
    remove_stale_build_locks,
    world_size,
)
from trainables.trial.judging import Judge, token_cache
from trainables.trial.planning import planned
from trainables.trial.records import Clock, Reported, read_records
from trainables.trial.reporting import own_run
from trainables.trial.rungs import Rungs
from trainables.trial.saving import Saving
from trainables.trial.states import States


def train(config: TrialConfig, report: Report, base: BaseModels, progress: Progress | None) -> None:
    """Trains a trial to its last rung, or to the one where `report` stops it."""
    clock = Clock()
    folder = Path(config.directory)
    if rank() == 0:
        settle_folder(folder / CHECKPOINT)
    states = States(folder / RESUME, config)
    state = states.newest()
    done = _of_first_worker(_known(folder, states, state))
    if state is None and not done:
        _start_anew(folder, states)
    if not _repeat(done, report, config):
        return
    values = {**config.arguments, "run_name": config.name}
    if values.get("deepspeed"):
        remove_stale_build_locks(extensions_folder())
        name_architectures_plainly()
    alone = values.get("deepspeed") or values.get("negatives_cross_device")
    tracked = own_run(folder) if values.get("report_to") else nullcontext()
    with process_group() if alone else nullcontext(), tracked, Saving(states) as saving:
        arguments = build_arguments(values, config.directory)
        rows = _rows_in_step(arguments)  # same_dataset_within_batch overwrites the argument: counted before
        reported = Reported(config, clock, batch_size=rows, done=done if state else ())
        runner = Runner(arguments, base, [], token_cache(config), values.get("torch_compile"))
        rungs = Rungs(
            reported,
            report,
            progress,
            runner=runner,
            judge=Judge(config, arguments, runner.tokenizer, base),
            saving=saving,
        )
        runner.trainer.add_callback(rungs)
        with planned(runner, config):
            if state is None:
                runner.trainer.train()
            else:
                clock.go_on_from(done[-1].seconds if done else {})
                runner.trainer.resume(state)


def _rows_in_step(arguments: Arguments) -> int:
    """Returns the training rows in one optimizer step, over all workers."""
    training = arguments.training
    assert training.n_gpu <= 1, "a worker trains on one card: others are other workers'"
    assert training.world_size == world_size(), "transformers must see every worker of the group"
    return int(training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size)


def _known(folder: Path, states: States, state: Path | None) -> list[RungReport]:
    """Returns what an earlier attempt has reported, where it left a state to go on from, or nothing to do."""
    records = [record for record in read_records(folder) if record.rung > 0]
    whole = bool(records) and records[-1].last and (folder / CHECKPOINT).is_dir()
    return records if state or (whole and states.are_ours) else []


def _start_anew(folder: Path, states: States) -> None:
    """Forgets what a trial of the same name has written."""
    agree(True)  # no worker may still have to look
    if rank() == 0:
        remove_folder(folder / CHECKPOINT)
        for name in (METRICS, scores_file("dev"), scores_file("dev", pooled=True)):
            (folder / name).unlink(missing_ok=True)
        states.begin()


def _of_first_worker(records: list[RungReport]) -> list[RungReport]:
    """Returns the first worker's: it wrote them, and the others may stand on other machines' disks."""
    if world_size() == 1:
        return records
    box = [records]
    dist.broadcast_object_list(box)
    return box[0]


def _repeat(done: list[RungReport], report: Report, config: TrialConfig) -> bool:
    """Reports again what was reported before a trial was interrupted; returns whether there is anything left to do."""
    return all(agree(report(record)) for record in done) and len(done) < len(config.rungs)
