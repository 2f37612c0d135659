"""A finished run directory, as those read it who come after the search."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainables.files import whole_records
from tuner.data import dataset as data
from tuner.errors import RequestError
from tuner.request.arguments import translated, upstream_arguments
from tuner.request.config import SearchConfig
from tuner.run_dir.object_storage import is_url
from tuner.run_dir.store import trial_folder

TRIAL_FILE = "config.json"
_TRIAL_FOLDER = r"\d{4,}(-[a-z]+[0-9.]*[0-9])?"
"""A trial's, a retraining's with another seed, or a mixture's."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What a search asked for, trained and found."""

    folder: Path
    config: SearchConfig
    result: Mapping[str, Any]
    """What result.json holds; `best` is there."""
    dataset: data.Dataset
    trained: Mapping[str, Any]
    """The winner's arguments as it was trained with: FlagEmbedding's and the installed transformers' names."""
    rung: Mapping[str, Any]
    """The winner's best rung, whose weights `checkpoint` holds: a `RungReport`."""
    checkpoint: Path
    needs_trust: bool = False
    """Whether the winner was trained with code of its model's own, and nobody has said here that it may run."""
    recorded_workers: int | None = None
    """Workers that the winner's own record names; None in runs that did not write them down."""

    @property
    def number(self) -> int:
        """The winner's number in the study."""
        return int(self.result["best"]["trial"])

    @property
    def base_model(self) -> str:
        """The base model: its name on the hub, its URL, or the folder that the trials found it in."""
        named = self.config.model_name_or_path
        found = Path(self.trained.get("model_name_or_path", named))
        if is_url(named) or f"models--{named.replace('/', '--')}" in found.parts:
            return named
        return str(found.resolve() if found.is_dir() else found)

    @property
    def workers(self) -> int:
        """Worker processes that trained a trial side by side, and shared negatives if asked to."""
        return self.recorded_workers or self.config.workers

    def argument(self, name: str) -> Any:
        """Returns the winner's value of an argument, or upstream's default; ``\\n`` in a format is a line's end."""
        value = self.trained.get(name, upstream_arguments()[name].default)
        return value.replace("\\n", "\n") if name.endswith("_format") and value else value


def read_run(folder: Path, *, trust_remote_code: bool = False) -> FinishedRun:
    """Reads the run directory `folder`.

    Args:
        folder: Anyone may have written it: what it says of code is not taken from it.
        trust_remote_code: The caller's own word that the model's code may run; without it, `trained` does not have it.

    Raises:
        RequestError: It is none, or its search has not come to a winner, or what it names is not inside of it.
    """
    result = _read_result(folder)
    _check_names(folder, result["best"])
    config = SearchConfig.from_dict(yaml.safe_load((folder / "config.yaml").read_text("utf-8")))
    trial = folder / "trials" / f"{result['best']['trial']:04d}"
    checkpoint = trial_folder(folder, result["best"]["folder"]) / "checkpoint"
    if not (checkpoint / "config.json").is_file():
        raise RequestError(
            [f"{folder}: the winner's weights are to be in {checkpoint}, but they are not; search again"]
        )
    trained = _trained(trial, config, result["best"]["params"])
    trusted = {"trust_remote_code": True} if trust_remote_code and trained.get("trust_remote_code") else {}
    return FinishedRun(
        folder=folder,
        config=config,
        result=result,
        dataset=data.load(folder / "data"),
        trained={name: value for name, value in trained.items() if name != "trust_remote_code"} | trusted,
        needs_trust=bool(trained.get("trust_remote_code")) and not trust_remote_code,
        recorded_workers=_workers(trial),
        rung=_best_rung(trial),
        checkpoint=checkpoint,
    )


def _check_names(folder: Path, best: Mapping[str, Any]) -> None:
    """The names in result.json become paths and words of a script: they are those that a search gives."""
    if not (isinstance(best["trial"], int) and re.fullmatch(_TRIAL_FOLDER, str(best["folder"]))):
        raise RequestError(
            [
                f"{folder / 'result.json'}: best.trial must be a number and best.folder a trial's, as 0007 or "
                f"0007-alpha0.50, but got {best['trial']!r} and {best['folder']!r}; no search wrote this"
            ]
        )


def _workers(trial: Path) -> int | None:
    workers = _record(trial).get("workers")
    if workers is None or (isinstance(workers, int) and workers > 0):
        return workers
    raise RequestError([f"{trial / TRIAL_FILE}: workers must be a number from 1, but got {workers!r}"])


def _read_result(folder: Path) -> dict[str, Any]:
    if not (folder / "config.yaml").is_file():
        raise RequestError(
            [f"{folder}: a run directory has a config.yaml, but this has none; give the --run_dir of a search"]
        )
    if not (folder / "result.json").is_file():
        raise RequestError(
            [f"{folder}: the search has not ended (no result.json); --resume {folder} takes it up again"]
        )
    result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    if result["best"] is None:
        raise RequestError([f"{folder}: no trial was trained to its end, so there is nothing to export; search again"])
    return result


def _trained(trial: Path, config: SearchConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The trial's own record; where it left none, what the user asked for and the search varied."""
    arguments: dict[str, Any] | None = _record(trial).get("arguments")
    return translated({**config.arguments, **params, "seed": config.seed}) if arguments is None else arguments


def _record(trial: Path) -> dict[str, Any]:
    """What the trial was asked, as it was written down when it started; empty where it was not."""
    file = trial / TRIAL_FILE
    record: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return record


def _best_rung(trial: Path) -> Mapping[str, Any]:
    """The first of the best: a later rung replaces the weights only by being better."""
    rungs = [rung for rung in whole_records(trial / "metrics.jsonl") if rung["rung"] > 0]
    return max(rungs, key=lambda rung: rung["value"])
