"""The winner's arguments, and the command that trains the same model with FlagEmbedding alone.

What names a place on one machine or opens a door is left out of both: it says nothing about the model.
"""

import json
import shlex
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainables.deepspeed_config import DS_STAGE0
from trainables.names import DATA
from tuner.errors import RequestError
from tuner.export.finished_run import FinishedRun
from tuner.export.negatives import CROSS, Negatives
from tuner.export.templates import render
from tuner.request.arguments import upstream_arguments
from tuner.request.config import SECRETS
from tuner.run_dir.names import BEST, SETTINGS, TRAIN
from tuner.run_dir.object_storage import is_url

MODULE = "FlagEmbedding.finetune.embedder.encoder_only.m3"
OWN_MODULE = "trainables.m3"
"""The same command of this package, for what FlagEmbedding has not."""
DEEPSPEED_FILE = "deepspeed.json"
_TEMPLATE = "train_script_template.sh"
_PACKAGES = ("FlagEmbedding", "transformers", "torch")
_DATA = f"{DATA}/{TRAIN}"
"""Where a bundle has the training data, if it has them, and where a run directory does."""
_SOMEWHERE = "path/to/"
"""Stands before the name of a folder that is not in the bundle."""

_PLACES = {"output_dir", "cache_dir", "cache_path", "resume_from_checkpoint", "dataloader_pin_memory"}
_REPORTING = {"report_to", "run_name"}
_MEMORY = {"sub_batch_size"}
"""Changes no gradient; and in FlagEmbedding, it saves no memory, and unified fine-tuning crashes on it."""
_SAVING = {"save_strategy", "save_steps", "save_total_limit", "save_only_model"}
_MODELS = ("model_name_or_path", "config_name", "tokenizer_name")


def arguments_of(run: FinishedRun) -> dict[str, Any]:
    """Returns the model's arguments, ready for FlagEmbedding's dataclasses on this machine.

    The base model is named as on the hub, or by its folder or URL; the training data is the run's.

    Raises:
        RequestError: The trial's record names an argument that is none: names become words of a script.
    """
    if unknown := sorted(run.trained.keys() - upstream_arguments().keys()):
        raise RequestError(
            [
                f"{run.folder}: every argument of the winner must be FlagEmbedding's or transformers', but its record "
                f"has {', '.join(map(repr, unknown))}; no search wrote this, or one with other versions of them"
            ]
        )
    left_out = _PLACES | _REPORTING | _SAVING | {*SECRETS} | (set() if run.has_adapters else _MEMORY)
    arguments = {name: value for name, value in run.trained.items() if name not in left_out and value is not None}
    arguments["model_name_or_path"] = run.base_model
    if run.is_base:
        return arguments
    arguments["train_data"] = list(_train_data(run))
    if run.workers == 1:
        arguments.pop(CROSS, None)  # nobody to share with, and FlagEmbedding alone makes no process group for one
    return arguments | _saving(run) | _kept_deepspeed(run)


def portable(run: FinishedRun, arguments: Mapping[str, Any], bundle: Path) -> dict[str, Any]:
    """Returns `arguments` without a path of this machine: what is not in the bundle is named, and not located.

    A DeepSpeed configuration is written into the bundle. A model on the hub or at a URL stays as it is.

    Raises:
        RequestError: The DeepSpeed configuration is not here.
    """
    changed = dict(arguments)
    if "train_data" in arguments:
        changed["train_data"] = [f"{_DATA}/{name}" for name in _data_names(run, arguments)]
    for name in _MODELS:
        if name in arguments and _is_folder(arguments[name]):
            changed[name] = f"{_SOMEWHERE}{Path(arguments[name]).name}"
    if "deepspeed" in arguments:
        changed["deepspeed"] = _write_deepspeed(arguments["deepspeed"], bundle)
    return changed


def copy_data(run: FinishedRun, bundle: Path) -> None:
    """Puts the training data into a bundle, where train.sh looks for them first."""
    shutil.copytree(run.folder / DATA / TRAIN, bundle / _DATA)


def called(run: FinishedRun) -> str:
    """Returns the package that train.sh trains with."""
    return "m3-tuner" if run.has_adapters else "FlagEmbedding"


def memory_note(run: FinishedRun) -> str:
    """Returns why training again needs more memory than the search did; empty where it does not."""
    size = int(run.trained.get("sub_batch_size") or 0)
    if size <= 0 or run.has_adapters:
        return ""
    return (
        f"The search trained with sub-batches of {size}, of the same gradients. FlagEmbedding's own save no memory and "
        "are left out: it needs more memory than the search did."
    )


def tokens_note(lacking: Sequence[str]) -> str:
    """Returns why FlagEmbedding cannot train the model, whose tokenizer has not the tokens `lacking`, and a remedy."""
    if not lacking:
        return ""
    return (
        f"FlagEmbedding cannot train the sparse head of a model whose tokenizer has no {', '.join(lacking)}, as the "
        f"search did. In a copy of the base model, set {', '.join(lacking)} in tokenizer_config.json to a token that "
        "tokenizer_config.json names as cls_token, pad_token or unk_token, and give its folder: "
        "bash train.sh --model_name_or_path COPY makes the same model."
    )


def train_script(run: FinishedRun, arguments: Mapping[str, Any], step: Negatives, lacking: Sequence[str]) -> str:
    """Returns train.sh: `arguments` as FlagEmbedding's command line, and what it needs that is not in the bundle.

    Args:
        run: The search.
        arguments: From `portable`.
        step: The workers that the negatives assume.
        lacking: Special tokens that FlagEmbedding needs and the tokenizer does not have.
    """
    module = OWN_MODULE if run.has_adapters else MODULE
    return render(
        _TEMPLATE,
        step=step,
        module=module,
        package=module.partition(".")[0],
        called=called(run),
        has_adapters=run.has_adapters,
        flags={name: _shell(name, value) for name, value in arguments.items()},
        rows=run.dataset.rows,
        files=[name.removeprefix(f"{_DATA}/") for name in arguments["train_data"]],
        folders={name: str(arguments[name]).removeprefix(_SOMEWHERE) for name in _absent(arguments)},
        hub=None
        if _absent({"model_name_or_path": arguments["model_name_or_path"]})
        else arguments["model_name_or_path"],
        packages={package: version(package) for package in dict.fromkeys((called(run), *_PACKAGES))},
        on_cpus=bool(arguments.get("use_cpu")),
        memory_note=textwrap.wrap(memory_note(run), 116),
        tokens_note=tokens_note(lacking),
        alpha=run.model.alpha,
    )


def _train_data(run: FinishedRun) -> Iterator[str]:
    """The data as it was read: a folder's files by name, unless a batch is to come from one file."""
    for path in map(Path, run.dataset.train_data):
        if path.is_dir() and not run.argument("same_dataset_within_batch"):
            yield from map(str, sorted(path.iterdir()))
        else:
            yield str(path)


def _saving(run: FinishedRun) -> dict[str, Any]:
    """Saves the weights where the winner's were taken: at the end, or else at its best rung's share of the steps."""
    share = run.rung["fraction"]
    if share == 1.0:
        return {"save_strategy": "no"}
    return {"save_strategy": "steps", "save_steps": share, "save_only_model": True}


def _kept_deepspeed(run: FinishedRun) -> dict[str, Any]:
    """What the run directory or this package has of a DeepSpeed configuration that is not here any more."""
    settings = run.trained.get("deepspeed")
    if not isinstance(settings, str) or Path(settings).is_file():
        return {}
    named = run.config.arguments.get("deepspeed")
    places = [run.folder / SETTINGS / Path(settings).name, run.folder / str(named), run.folder / BEST / DEEPSPEED_FILE]
    if Path(settings).name == DS_STAGE0.name:
        places.append(DS_STAGE0)
    found = next((place for place in places if place.is_file()), None)
    return {} if found is None else {"deepspeed": str(found)}


def _write_deepspeed(settings: str | Mapping[str, Any], bundle: Path) -> str:
    if not isinstance(settings, str):
        (bundle / DEEPSPEED_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    elif Path(settings).is_file():
        shutil.copyfile(settings, bundle / DEEPSPEED_FILE)
    else:
        raise RequestError([f"--deepspeed {settings}: trials were trained with it, but it is not here; bring it back"])
    return DEEPSPEED_FILE


def _data_names(run: FinishedRun, arguments: Mapping[str, Any]) -> Iterator[str]:
    """What the data are called in the folder of the run directory that has them."""
    home = (run.folder / DATA / TRAIN).resolve()
    for path in arguments["train_data"]:
        yield Path(path).resolve().relative_to(home).as_posix()


def _is_folder(model: str) -> bool:
    """Whether it is one of the machine that the search ran on, be it here or not."""
    return not is_url(model) and (Path(model).is_dir() or Path(model).is_absolute())


def _absent(arguments: Mapping[str, Any]) -> list[str]:
    """Models that have to be named when the bundle is used: FlagEmbedding cannot load them by what it says of them."""
    return [name for name in _MODELS if is_url(text := str(arguments.get(name, ""))) or text.startswith(_SOMEWHERE)]


def _shell(name: str, value: Any) -> str:
    values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    return " ".join(_word(name, item) for item in values)


def _word(name: str, value: Any) -> str:
    text = json.dumps(value) if isinstance(value, Mapping) else str(value)
    if _absent({name: value}):
        return f'"${{{name.upper()}:-}}"'
    if name == "train_data":
        return f'"$data"/{shlex.quote(text.removeprefix(f"{_DATA}/"))}'
    return f'"$here"/{shlex.quote(text)}' if text == DEEPSPEED_FILE else shlex.quote(text)
