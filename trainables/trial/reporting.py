"""Experiment trackers: each trial is a run of its own in what ``--report_to`` names.

transformers' own callbacks pass the curves on. Where they would mix trials, because several share a process or a
folder, they are kept apart here.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from trainables.names import CURVES, MLFLOW


@contextmanager
def own_run(directory: Path) -> Iterator[None]:
    """Gives the trial in `directory` a run of its own for the block, and ends it however the block ends.

    What the environment does not say is kept in the run directory: RUN/tensorboard/NAME, and RUN/mlflow.db with RUN's
    name as experiment. The caller restores the environment.

    Args:
        directory: RUN/trials/NAME.
    """
    run_dir = directory.parents[1]
    board = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or run_dir / CURVES)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(board / directory.name)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{quote(str(run_dir / MLFLOW))}")
    os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", run_dir.name)
    os.environ.setdefault("WANDB_PROJECT", run_dir.name)
    try:
        yield
    finally:
        _end_runs()


def _end_runs() -> None:
    """wandb's callback leaves its run to the next trial of the process, and mlflow's does after a failure."""
    if (wandb := sys.modules.get("wandb")) and wandb.run is not None:
        wandb.finish()
    if (mlflow := sys.modules.get("mlflow")) and mlflow.active_run() is not None:
        mlflow.end_run("FAILED")
