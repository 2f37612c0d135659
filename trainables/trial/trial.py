"""One trial from its configuration to its scores. Needs no Ray: a worker group, a test or a shell can call it."""

from pathlib import Path
from typing import TYPE_CHECKING

from trainables.config import Progress, Report, TrialConfig
from trainables.names import worker_log

if TYPE_CHECKING:
    from trainables.m3.base_models import BaseModels


def run_trial(
    config: TrialConfig, report: Report, base: "BaseModels | None" = None, progress: Progress | None = None
) -> None:
    """Trains a configuration and scores it at its rungs, or scores a checkpoint where it has none.

    Every worker of a group calls it with the same arguments, the process group made (or none, for one worker). Rank 0
    writes the trial's folder: ``metrics.jsonl``, ``log.txt``, ``<split>.json`` and ``checkpoint/`` (the best rung).

    Args:
        config: what to train and score.
        report: called on every worker at every rung with the same report; an answer of False on any stops the trial.
        base: base models kept from the trials before in this process.
        progress: called on every worker after each optimizer step.

    Raises:
        NonFiniteLoss: the loss was NaN or infinite.
        torch.OutOfMemoryError: as it came; halving `sub_batch_size` bounds the memory without changing the result.
    """
    from trainables.m3.base_models import BaseModels
    from trainables.process import rank, trial_process
    from trainables.trial.judging import score
    from trainables.trial.training import train

    folder = Path(config.directory)
    folder.mkdir(parents=True, exist_ok=True)
    with trial_process(folder / worker_log(rank())):
        if config.rungs:
            train(config, report, base or BaseModels(), progress)
        else:
            score(config, report, base or BaseModels())
