"""A finished run directory, as those read it who come after the search."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainables.files import whole_records
from trainables.names import CHECKPOINT, CONFIG, DATA, METRICS, scores_file
from trainables.scoring.measures import Scores
from trainables.scoring.settings import UNTRAINED_ARGUMENTS
from tuner.data import dataset as data
from tuner.data.models import model_here
from tuner.errors import RequestError
from tuner.request.arguments import translated, upstream_arguments
from tuner.request.config import SearchConfig
from tuner.run_dir.names import BASE_FOLDER, CONFIG_FILE, RESULT_FILE, trial_name, trial_path
from tuner.run_dir.object_storage import is_url
from tuner.run_dir.store import trial_folder
from tuner.study.study import read_studies
from tuner.study.trials import arguments_of, dev_scores
from tuner.verdict.result import Best, Model, Recommended, Verdict

_TRIAL_FOLDER = r"\d{4,}(-[a-z]+[0-9.]*[0-9])?"
"""A trial's, a retraining's with another seed, or a mixture's."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What a search asked for and found, and the one of its models that is exported."""

    folder: Path
    config: SearchConfig
    result: Verdict
    best: Best
    """The winner and its scores."""
    dataset: data.Dataset
    model: Model
    """What is exported: the base model, the winner, or another trial that was asked for."""
    trained: Mapping[str, Any]
    """Its arguments as it was trained with: FlagEmbedding's and the installed transformers' names.

    Of the base model, which was not, those that it is to be used with.
    """
    rung: Mapping[str, Any]
    """Its best rung, whose weights `checkpoint` holds: a `RungReport`; empty for the base model."""
    checkpoint: Path
    needs_trust: bool = False
    """Whether the winner was trained with code of its model's own, and nobody has said here that it may run."""
    recorded_workers: int | None = None
    """Workers that the trial's own record names; None in runs that did not write them down."""

    @property
    def number(self) -> int:
        """The model's number in the study; the base model is 0."""
        return self.model.trial

    @property
    def has_adapters(self) -> bool:
        """Whether adapters were trained (LoRA), which FlagEmbedding has for decoder models only; they are merged."""
        return bool(self.trained.get("use_lora")) and not self.is_base

    @property
    def is_base(self) -> bool:
        """Whether the base model is exported, which was not trained."""
        return not self.rung

    @property
    def is_best(self) -> bool:
        """Whether the winner is exported, which the verdict is about."""
        return self.model.folder == self.best.folder

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
        """Returns the model's value of an argument, or upstream's default; ``\\n`` in a format is a line's end."""
        value = self.trained.get(name, upstream_arguments()[name].default)
        return value.replace("\\n", "\n") if name.endswith("_format") and value else value


def read_run(folder: Path, trial: int | None = None, *, trust_remote_code: bool = False) -> FinishedRun:
    """Reads the run directory `folder`.

    Args:
        folder: Anyone may have written it: what it says of code is not taken from it.
        trial: Which of its models is exported, by its number; 0 is the base model. None: the one that the verdict
            recommends.
        trust_remote_code: The caller's own word that the model's code may run; without it, `trained` does not have it.

    Raises:
        RequestError: It is none, its search has not come to a winner, what it names is not inside of it, or there are
            no weights of that trial.
    """
    result, best = _read_result(folder)
    _check_names(folder, best)
    config = SearchConfig.from_dict(yaml.safe_load((folder / CONFIG_FILE).read_text("utf-8")))
    recommended = result.recommended or Recommended(trial=best.trial, folder=best.folder)
    number = recommended.trial if trial is None else trial
    known: dict[str, Any] = {"folder": folder, "config": config, "result": result, "best": best}
    known["dataset"] = data.load(folder / DATA)
    if number == 0:
        model, trained = _base_model(folder, config, result, best, recommended.settings)
        kind: dict[str, Any] = {"rung": {}, "checkpoint": Path(trained["model_name_or_path"])}
    else:
        model = best if number == best.trial else _other_trial(folder, config, number)
        record = trial_path(folder, trial_name(number))
        kind = {"checkpoint": _checkpoint(folder, model, best)}
        kind |= {"rung": _best_rung(record), "recorded_workers": _workers(record)}
        trained = _trained(record, config, model.params)
    trusted = {"trust_remote_code": True} if trust_remote_code and trained.get("trust_remote_code") else {}
    return FinishedRun(
        **known,
        **kind,
        model=model,
        trained={name: value for name, value in trained.items() if name != "trust_remote_code"} | trusted,
        needs_trust=bool(trained.get("trust_remote_code")) and not trust_remote_code,
    )


def _check_names(folder: Path, best: Best) -> None:
    """The names in result.json become paths and words of a script: they are those that a search gives."""
    if not re.fullmatch(_TRIAL_FOLDER, best.folder):
        raise RequestError(
            [
                f"{folder / RESULT_FILE}: best.trial must be a number and best.folder a trial's, as 0007 or "
                f"0007-alpha0.50, but got {best.trial!r} and {best.folder!r}; no search wrote this"
            ]
        )


def _workers(trial: Path) -> int | None:
    workers = _record(trial).get("workers")
    if workers is None or (isinstance(workers, int) and workers > 0):
        return workers
    raise RequestError([f"{trial / CONFIG}: workers must be a number from 1, but got {workers!r}"])


def _base_model(
    folder: Path, config: SearchConfig, result: Verdict, best: Best, settings: Mapping[str, Any]
) -> tuple[Model, dict[str, Any]]:
    """Returns the base model and what it is used with: the user's own settings but for `settings`."""
    base = result.base
    encoded = [each for each in (base.encoded_as_best, base.at_its_best) if each] if base else []
    model = next((each for each in encoded if settings and each.params == settings), base)
    asked = {**config.arguments, **settings}
    found = _record(trial_path(folder, trial_name(best.trial))).get("arguments", {}).get("model_name_or_path")
    place = settings.get("model_name_or_path") or found
    if place is None or not Path(place).is_dir():
        place = model_here(place or config.model_name_or_path, cache_dir=config.arguments.get("cache_dir"))
    used = {name: asked[name] for name in UNTRAINED_ARGUMENTS if asked.get(name) is not None}
    return model or Model(trial=0, folder=BASE_FOLDER), used | {"model_name_or_path": place}


def _other_trial(folder: Path, config: SearchConfig, number: int) -> Model:
    """A trial that did not win, as the study has it."""
    search, _ = read_studies(folder, config.storage, config.study_name)
    trials = search.get_trials(deepcopy=False)
    if not 0 < number < len(trials):
        raise RequestError([f"--trial {number}: the search has trials 0 to {len(trials) - 1}, the base model being 0"])
    name, scores = trial_name(number), dev_scores(search, trials[number])
    tested = trial_path(folder, name) / scores_file("test")
    test = Scores.from_json(tested.read_text("utf-8")).means if tested.exists() else {}
    return Model(
        trial=number,
        folder=name,
        params=arguments_of(trials[number]),
        dev=scores.get(config.metric),
        test=test.get(config.metric),
        dev_all=scores,
        test_all=test,
    )


def _checkpoint(folder: Path, model: Model, best: Best) -> Path:
    checkpoint = trial_folder(folder, model.folder) / CHECKPOINT
    if (checkpoint / "config.json").is_file():
        return checkpoint
    if model is best:
        raise RequestError(
            [f"{folder}: the winner's weights are to be in {checkpoint}, but they are not; search again"]
        )
    raise RequestError(
        [
            f"--trial {model.trial}: its weights are to be in {checkpoint}, but they were not kept; name another "
            "trial, or raise --keep_checkpoints and search again"
        ]
    )


def _read_result(folder: Path) -> tuple[Verdict, Best]:
    if not (folder / CONFIG_FILE).is_file():
        raise RequestError(
            [f"{folder}: a run directory has a config.yaml, but this has none; give the --run_dir of a search"]
        )
    result = Verdict.read(folder)
    if result is None:
        raise RequestError(
            [f"{folder}: the search has not ended (no result.json); --resume {folder} takes it up again"]
        )
    if result.best is None:
        raise RequestError([f"{folder}: no trial was trained to its end, so there is nothing to export; search again"])
    return result, result.best


def _trained(trial: Path, config: SearchConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The trial's own record; where it left none, what the user asked for and the search varied."""
    arguments: dict[str, Any] | None = _record(trial).get("arguments")
    return translated({**config.arguments, **params, "seed": config.seed}) if arguments is None else arguments


def _record(trial: Path) -> dict[str, Any]:
    """What the trial was asked, as it was written down when it started; empty where it was not."""
    file = trial / CONFIG
    record: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return record


def _best_rung(trial: Path) -> Mapping[str, Any]:
    """The first of the best: a later rung replaces the weights only by being better."""
    rungs = [rung for rung in whole_records(trial / METRICS) if rung["rung"] > 0]
    return max(rungs, key=lambda rung: rung["value"])
