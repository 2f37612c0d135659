"""A finished run directory, as those read it who come after the search."""

import json
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

TRIAL_FILE = "config.json"


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


def read_run(folder: Path) -> FinishedRun:
    """Reads the run directory `folder`.

    Raises:
        RequestError: It is none, or its search has not come to a winner.
    """
    result = _read_result(folder)
    config = SearchConfig.from_dict(yaml.safe_load((folder / "config.yaml").read_text("utf-8")))
    trial = folder / "trials" / f"{result['best']['trial']:04d}"
    checkpoint = folder / "trials" / result["best"]["folder"] / "checkpoint"
    if not (checkpoint / "config.json").is_file():
        raise RequestError(
            [f"{folder}: the winner's weights are to be in {checkpoint}, but they are not; search again"]
        )
    return FinishedRun(
        folder=folder,
        config=config,
        result=result,
        dataset=data.load(folder / "data"),
        trained=_trained(trial, config, result["best"]["params"]),
        recorded_workers=_record(trial).get("workers"),
        rung=_best_rung(trial),
        checkpoint=checkpoint,
    )


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
