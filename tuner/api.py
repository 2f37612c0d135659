"""The programmatic interface: run a search, read a finished one, take what it found."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from trainables.names import CHECKPOINT
from tuner.errors import RequestError
from tuner.export.bundle import best_arguments, check_room, write_bundle
from tuner.export.finished_run import read_run
from tuner.request.config import SearchConfig
from tuner.run_dir.names import CONFIG_FILE, REPORT_FILE, RESULT_FILE
from tuner.run_dir.store import run_folder, trial_folder
from tuner.run_dir.written import holds_trials
from tuner.verdict.result import Verdict, bundle_of

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
        values: Mapping[str, Any] = json.loads((self.run_dir / RESULT_FILE).read_text("utf-8"))
        return values

    @functools.cached_property
    def _found(self) -> "Verdict":
        return Verdict.from_dict(self.summary)

    def _repr_html_(self) -> str | None:
        """What a notebook shows of it: its report, where there is one."""
        from tuner.report.templates import framed

        report = self.run_dir / REPORT_FILE
        return framed(report.read_text("utf-8"), height=800, title="report") if report.is_file() else None

    @property
    def verdict(self) -> str:
        """``fine-tune`` or ``keep the base model``."""
        return self._found.verdict

    @property
    def best_config(self) -> dict[str, Any]:
        """What the recommended model was trained with, or the base model is used with, by FlagEmbedding's names.

        `trust_remote_code` is yours to add. Where the verdict is to keep the base model, a warning says so first.
        """
        return best_arguments(self.run_dir)

    @property
    def checkpoint(self) -> Path:
        """Folder of the recommended model: the bundle, in FlagEmbedding's and sentence-transformers' layout.

        Where the verdict is to keep the base model, that is it. Where the bundle was refused, the trial's own
        checkpoint, or the base model's folder.

        Raises:
            ValueError: No trial was trained to its end.
        """
        best = self._found.best
        if best is None:
            raise ValueError(f"{self.run_dir}: no trial was trained to its end, so none has a checkpoint")
        bundle, recommended = bundle_of(self.run_dir, self._found), self._found.recommended
        if bundle is None and recommended is not None and recommended.trial == 0:
            return read_run(self.run_dir).checkpoint
        return bundle or trial_folder(self.run_dir, best.folder) / CHECKPOINT

    @property
    def trials(self) -> "pd.DataFrame":
        """The study's trials, one a row, as Optuna's ``study.trials_dataframe`` gives them; FAIL where it failed."""
        from tuner.study.study import read_studies
        from tuner.study.trials import has_failed

        config = _config(self.run_dir)
        study = read_studies(self.run_dir, config.storage, config.study_name)[0]
        frame = study.trials_dataframe()
        frame.loc[[has_failed(trial) for trial in study.trials], "state"] = "FAIL"
        return frame


def run(config: SearchConfig, *, console: Console | None = None) -> Result:
    """Runs a search, in a script or a notebook cell.

    Args:
        config: What is asked; ``SearchConfig()`` is the embedded example. With `resume` or `again`, what that run was
            asked, and of this what is not a default.
        console: Where progress is said. None: standard output. A notebook's cell also shows the live page.

    Returns:
        The finished search. With `dry_run` there is none: nothing is left where nothing was.

    Raises:
        RequestError: The request or the data is wrong, `submit` in it; or, with the search finished, the bundle needs
            a file that is not here any more.
        AllTrialsFailedError: No trial could be trained.
        BundleRefusedError: A library does not embed with the best model as training did, or the bundle could not be
            written; the search is finished.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; a BaseException, which ``except Exception`` does not catch. `resume`
            goes on.
        SearchStopped: An Interrupted: the machine cannot go on.
    """
    from tuner.request.command_line import resumed
    from tuner.request.config import EXAMPLE_DEFAULTS
    from tuner.search.run import run_search
    from tuner.search.terminal import new_console

    if config.submit:
        remedy = f"leave it out, or write a command line: python -m tuner.search --submit {config.submit} ..."
        raise RequestError([f"submit: from Python a search runs here; {remedy}"])
    if config.resume or config.again:
        config = resumed(config)
    if config.is_example:
        unset = {k: v for k, v in EXAMPLE_DEFAULTS.items() if getattr(config, k) == getattr(SearchConfig, k)}
        config = config.replace(**unset)
    argv: list[str] | None = [] if config == SearchConfig(**EXAMPLE_DEFAULTS) else None
    return Result(run_search(config, argv, console or new_console()))


def load(run_dir: str | Path) -> Result:
    """Returns the finished search in `run_dir`, a path or a URL.

    Raises:
        ValueError: There is no result in it.
    """
    return _loaded(run_dir)


def _loaded(run_dir: str | Path, trial: int | None = None) -> Result:
    folder = run_folder(run_dir, trial=trial)
    if not (folder / RESULT_FILE).is_file():
        begun = f"; --resume {run_dir} continues it" if holds_trials(folder) else ""
        raise ValueError(f"{run_dir} holds no finished search (no {RESULT_FILE}){begun}")
    return Result(folder)


def best_config(run_dir: str | Path, *, trial: int | None = None) -> dict[str, Any]:
    """Returns a model's arguments under FlagEmbedding's names, ready for its dataclasses.

    Where the verdict is to keep the base model, a warning says so first.

    Args:
        run_dir: The run directory, a path or a URL.
        trial: See `export_best`. Of the base model there is what it is used with.
    """
    return best_arguments(load(run_dir).run_dir, trial)


def export_best(
    run_dir: str | Path,
    to: str | Path,
    *,
    gpus: int | None = None,
    trial: int | None = None,
    trust_remote_code: bool = False,
    with_data: bool = False,
    onnx: bool = False,
    int8: bool = False,
) -> Path:
    """Writes the bundle of a finished search, as ``python -m tuner.export`` does.

    Args:
        run_dir: The run directory, a path or a URL.
        to: Folder to write, new or empty: nothing that is there is replaced, be it an earlier bundle.
        gpus: Workers that train.sh is for, with the same negatives a query. None: as many as a trial had.
        trial: Number of the model, whatever the verdict; 0 is the base model. None: the one that the verdict
            recommends.
        trust_remote_code: Code that lies beside the weights may run here, as it did in training.
        with_data: Put the training data into the bundle, so that train.sh needs no run directory.
        onnx: Write the heads as an ONNX graph, too; needs the extra ``onnx``.
        int8: And a second graph of 8-bit weights, with what it loses on dev.

    Returns:
        `to`.

    Raises:
        RequestError: `to` holds something, the search has no winner, the trial no weights, on `gpus` it would be
            another model, or it needs `trust_remote_code`.
        ValueError: The search is not finished.
        BundleRefusedError: A library does not embed with the bundle as training did.
    """
    check_room(Path(to))
    chosen: dict[str, Any] = {
        "gpus": gpus,
        "trial": trial,
        "trust_remote_code": trust_remote_code,
        "with_data": with_data,
        "onnx": onnx,
        "int8": int8,
    }
    return write_bundle(_loaded(run_dir, trial).run_dir, Path(to), **chosen)


def _config(run_dir: Path) -> SearchConfig:
    import yaml

    return SearchConfig.from_dict(yaml.safe_load((run_dir / CONFIG_FILE).read_text("utf-8")))
