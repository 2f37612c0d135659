"""The programmatic interface: run a search, read a finished one, take what it found."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tuner.export.bundle import best_arguments, check_room, write_bundle
from tuner.request.config import SearchConfig
from tuner.run_dir.names import bundle_of
from tuner.run_dir.store import run_folder, trial_folder

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Result:
    """A finished search."""

    run_dir: Path
    """Its run directory."""

    @functools.cached_property
    def summary(self) -> Mapping[str, Any]:
        """What result.json holds: verdict, scores, interval, seconds."""
        values: Mapping[str, Any] = json.loads((self.run_dir / "result.json").read_text("utf-8"))
        return values

    @property
    def verdict(self) -> str:
        """``fine-tune`` or ``keep the base model``."""
        return str(self.summary["verdict"])

    @property
    def best_config(self) -> dict[str, Any]:
        """The winner's arguments, under FlagEmbedding's names; `trust_remote_code` is yours to add."""
        return best_arguments(self.run_dir)

    @property
    def checkpoint(self) -> Path:
        """Folder of the winner's weights: the bundle, in FlagEmbedding's and sentence-transformers' layout.

        Where the bundle was refused, the trial's own checkpoint, in FlagEmbedding's layout.

        Raises:
            ValueError: No trial was trained to its end.
        """
        best = self.summary["best"]
        if best is None:
            raise ValueError(f"{self.run_dir}: no trial was trained to its end, so none has a checkpoint")
        return bundle_of(self.run_dir, self.summary) or trial_folder(self.run_dir, best["folder"]) / "checkpoint"

    @property
    def trials(self) -> "pd.DataFrame":
        """The study's trials, one a row, as Optuna's ``study.trials_dataframe`` gives them; FAIL where it failed."""
        from tuner.study.study import has_failed, read_studies

        config = _config(self.run_dir)
        study = read_studies(self.run_dir, config.storage, config.study_name)[0]
        frame = study.trials_dataframe()
        frame.loc[[has_failed(trial) for trial in study.trials], "state"] = "FAIL"
        return frame


def run(config: SearchConfig, *, console: Console | None = None) -> Result:
    """Runs a search, in a script or a notebook cell.

    Args:
        config: What is asked; ``SearchConfig()`` is the embedded example. With `resume`, what that run was asked, and
            of this what is not a default.
        console: Where progress is shown. None: standard output, or the notebook cell.

    Returns:
        The finished search. With `dry_run` there is none: nothing is left where nothing was.

    Raises:
        RequestError: The request or the data is wrong; or, with the search finished, the bundle needs a file that is
            not here any more.
        AllTrialsFailedError: No trial could be trained.
        BundleRefusedError: A library does not embed with the best model as training did, or the bundle could not be
            written; the search is finished.
        Interrupted: Ctrl-C or SIGTERM; a BaseException, which ``except Exception`` does not catch. `resume` goes on.
        SearchStopped: An Interrupted: the machine cannot go on.
    """
    from tuner.request.command_line import resumed
    from tuner.request.config import EXAMPLE_DEFAULTS
    from tuner.search.run import run_search

    if config.resume:
        config = resumed(config)
    if config.is_example:
        unset = {k: v for k, v in EXAMPLE_DEFAULTS.items() if getattr(config, k) == getattr(SearchConfig, k)}
        config = config.replace(**unset)
    argv: list[str] | None = [] if config == SearchConfig(**EXAMPLE_DEFAULTS) else None
    return Result(run_search(config, argv, console or Console(highlight=False)))


def load(run_dir: str | Path) -> Result:
    """Returns the finished search in `run_dir`, a path or a URL.

    Raises:
        ValueError: There is no result in it.
    """
    folder = run_folder(run_dir)
    if not (folder / "result.json").is_file():
        raise ValueError(f"{run_dir} holds no finished search (no result.json); --resume {run_dir} takes it up again")
    return Result(folder)


def best_config(run_dir: str | Path) -> dict[str, Any]:
    """Returns the winner's arguments under FlagEmbedding's names, ready for its dataclasses."""
    return load(run_dir).best_config


def export_best(
    run_dir: str | Path, to: str | Path, *, gpus: int | None = None, trust_remote_code: bool = False
) -> Path:
    """Writes the bundle of a finished search, as ``python -m tuner.export`` does.

    Args:
        run_dir: The run directory, a path or a URL.
        to: Folder to write, new or empty: nothing that is there is replaced, be it an earlier bundle.
        gpus: Workers that train.sh is for, with the same negatives a query. None: as many as a trial had.
        trust_remote_code: Code that lies beside the weights may run here, as it did in training.

    Returns:
        `to`.

    Raises:
        RequestError: `to` holds something, the search has no winner, on `gpus` it would be another model, or it needs
            `trust_remote_code`.
        ValueError: The search is not finished.
        BundleRefusedError: A library does not embed with the bundle as training did.
    """
    check_room(Path(to))
    return write_bundle(load(run_dir).run_dir, Path(to), gpus=gpus, trust_remote_code=trust_remote_code)


def _config(run_dir: Path) -> SearchConfig:
    import yaml

    return SearchConfig.from_dict(yaml.safe_load((run_dir / "config.yaml").read_text("utf-8")))
