"""The argument names of FlagEmbedding's M3 fine-tune and of transformers, read from their source.

The dataclasses are parsed, not imported: importing them costs seconds (torch, transformers), and a wrong flag is to be
refused at once. Sources: ``AbsArguments.py`` and ``encoder_only/m3/arguments.py`` of FlagEmbedding,
``training_args.py`` of transformers, and `trainables.m3.lora` for what FlagEmbedding has for decoder models alone.
"""

import ast
import datetime
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tuner.request import values

_SOURCES = (
    ("FlagEmbedding", "abc/finetune/embedder/AbsArguments.py"),
    ("FlagEmbedding", "finetune/embedder/encoder_only/m3/arguments.py"),
    ("transformers", "training_args.py"),
    ("trainables", "m3/lora.py"),
)
_ENUMERATIONS = ("trainer_utils.py", "training_args.py")
"""Files of transformers whose enumerations are the values of some arguments."""
_CLASSES = {
    "AbsEmbedderModelArguments": "model",
    "EncoderOnlyEmbedderM3ModelArguments": "model",
    "LoraArguments": "model",
    "AbsEmbedderDataArguments": "data",
    "AbsEmbedderTrainingArguments": "training",
    "EncoderOnlyEmbedderM3TrainingArguments": "training",
    "TrainingArguments": "training",
}

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
}
"""Arguments that transformers 5 knows under another name, with the same values."""

DROPPED = {
    "overwrite_output_dir": "the same request goes on with its search, for another one that is set aside",
    "save_safetensors": "checkpoints are always safetensors",
    "logging_dir": "curves are under the run directory",
}
"""Arguments that transformers 5 no longer has, and what happens instead."""
_SEARCHABLE = (
    "learning_rate",
    "temperature",
    "train_group_size",
    "per_device_train_batch_size",
    "weight_decay",
    "num_train_epochs",
    "max_grad_norm",
    "gradient_accumulation_steps",
)
"""Numbers that a space may vary."""

Group = Literal["model", "data", "training"]


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One upstream argument."""

    name: str
    group: Group
    """Which of FlagEmbedding's three dataclasses holds it."""
    annotation: str
    """Its type as written in the source."""
    default: Any
    """Its default where that is a literal, else None."""
    help: str
    choices: tuple[str, ...]
    is_list: bool

    @property
    def is_bool(self) -> bool:
        return "bool" in self.annotation and "Literal" not in self.annotation and "dict" not in self.annotation

    @property
    def is_number(self) -> bool:
        """Whether a whole number or a fraction is meant, and nothing else."""
        return self.is_whole or ("float" in self.annotation and "str" not in self.annotation)

    @property
    def is_whole(self) -> bool:
        """Whether a whole number is meant, and nothing else."""
        return "int" in self.annotation and not any(
            other in self.annotation for other in ("float", "str", "List[", "dict[")
        )

    def parse(self, value: Any) -> Any:
        """Returns `value`, of a command line, of YAML, from Python or from a space, in the argument's type.

        Raises:
            ValueError: It cannot be read as that type, or is not among the choices.
        """
        value = values.plain(value)
        if self._nullable and (value is None or (isinstance(value, str) and value.lower() == "none")):
            return None
        if value is None:
            raise ValueError("must have a value, but got None")
        if self.is_list:
            if "[float]" in self.annotation and isinstance(value, str | list):
                value = [each for part in values.items(value) for each in _numbers_in(part)]
            return [self._item(each) for each in values.items(value)]
        if value is False and "no" in self.choices:  # what YAML makes of it
            value = "no"
        parsed = self._read(value)
        if self.choices and parsed not in self.choices:
            raise ValueError(f"must be one of {', '.join(self.choices)}, but got {values.shown(value)}")
        return parsed

    @property
    def _nullable(self) -> bool:
        return self.default is None or "None" in self.annotation or "Optional" in self.annotation

    def _item(self, value: Any) -> Any:
        value = values.plain(value)
        if "[float]" in self.annotation:
            return values.number(value)
        found = values.whole_number(value) if "[int]" in self.annotation else values.text(value)
        if found == "":
            raise ValueError("must name something in each of its values, but one of them is empty")
        return found

    def _read(self, value: Any) -> Any:
        if self.annotation in _QUANTITIES:
            _QUANTITIES[self.annotation](value)
            return values.text(_seconds_of(value))
        if self.name in _SECONDS and isinstance(value, str | datetime.timedelta):
            value = values.duration(value)
        if self.is_bool and "str" not in self.annotation:
            return values.boolean(value)
        if self.is_bool and (isinstance(value, bool) or value in ("true", "false", "True", "False")):
            return values.boolean(value)
        if self.is_whole:
            return values.whole_number(value)
        if self.is_number:
            return values.number(value)
        if "dict" in self.annotation:
            return values.mapping(value)
        if "list[" in self.annotation and isinstance(value, list):
            return [self._item(each) for each in value]
        return values.text(value)


_QUANTITIES = {"duration": values.duration, "size": values.size}
"""What may be written with a unit, and stays as it was written."""
_SECONDS = ("ddp_timeout",)
"""Arguments of transformers that are a number of seconds."""


def _seconds_of(value: Any) -> Any:
    return f"{value.total_seconds():g}" if isinstance(value, datetime.timedelta) else value


def _numbers_in(part: Any) -> list[Any]:
    return part.replace(",", " ").split() if isinstance(part, str) else [part]


@cache
def upstream_arguments() -> Mapping[str, Argument]:
    """Every argument that FlagEmbedding's M3 command accepts, by name.

    Raises:
        ModuleNotFoundError: FlagEmbedding or transformers is not installed.
    """
    found: dict[str, Argument] = {}
    for package, relative in _SOURCES:
        for argument in _fields(_package_folder(package) / relative):
            found.setdefault(argument.name, argument)
    return found


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed; run: pip install -e .")
    return Path(spec.origin).parent


def _fields(source: Path) -> Iterator[Argument]:
    for node in ast.parse(source.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name in _CLASSES:
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    yield _argument(item, item.target.id, _CLASSES[node.name])


@cache
def _enumerations() -> Mapping[str, Sequence[str]]:
    """Enumeration -> its values, in transformers."""
    files = [_package_folder("transformers") / name for name in _ENUMERATIONS]
    nodes = (node for file in files for node in ast.parse(file.read_text("utf-8")).body)
    return {
        node.name: tuple(_literal(item.value) for item in node.body if isinstance(item, ast.Assign))
        for node in nodes
        if isinstance(node, ast.ClassDef) and "ExplicitEnum" in map(ast.unparse, node.bases)
    }


def _argument(item: ast.AnnAssign, name: str, group: str) -> Argument:
    keywords = {k.arg: k.value for k in item.value.keywords} if isinstance(item.value, ast.Call) else {}
    metadata = _metadata(keywords.get("metadata"))
    annotation = ast.unparse(item.annotation)
    return Argument(
        name=name,
        group=group,  # type: ignore[arg-type]
        annotation=annotation,
        default=_literal(keywords.get("default")),
        help=" ".join(str(metadata.get("help") or "").split()),
        choices=tuple(metadata.get("choices") or _enumerations().get(annotation.partition(" ")[0], ())),
        is_list=metadata.get("nargs") in ("+", "*") or annotation.startswith(("List[", "list[")),
    )


def _metadata(node: ast.expr | None) -> dict[str, Any]:
    if not isinstance(node, ast.Dict):
        return {}
    return {str(_literal(k)): _literal(v) for k, v in zip(node.keys, node.values, strict=True)}


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def translated(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `arguments` in the names of the installed transformers.

    ``warmup_ratio`` becomes ``warmup_steps`` (below 1 it is a ratio there), ``group_by_length`` a sampling strategy;
    what transformers has dropped is left out.
    """
    result = {RENAMED.get(name, name): value for name, value in arguments.items() if name not in DROPPED}
    ratio = result.pop("warmup_ratio", None)
    if ratio is not None and not result.get("warmup_steps"):
        result["warmup_steps"] = ratio
    if result.pop("group_by_length", False):
        result["train_sampling_strategy"] = "group_by_length"
    return result


def searchable_numbers(arguments: Mapping[str, Any], *, rows: int, workers: int) -> dict[str, int | float]:
    """Returns the numbers that a space may vary: the user's, else upstream's defaults.

    Budgets are counted in examples, so that every batch size gets the same: `max_steps` becomes epochs, and a number of
    warm-up steps, which wins over a ratio, a share.

    Args:
        arguments: As the user gave them.
        rows: That train.
        workers: Of one trial: each sees a batch of its own in every step.
    """
    numbers = {name: arguments.get(name, upstream_arguments()[name].default) for name in _SEARCHABLE}
    batch = workers * numbers["per_device_train_batch_size"] * numbers["gradient_accumulation_steps"]
    if (arguments.get("max_steps") or -1) > 0:
        numbers["num_train_epochs"] = arguments["max_steps"] * batch / rows
    warmup = arguments.get("warmup_steps") or 0
    share = warmup if warmup < 1 else min(0.5, warmup * batch / (rows * numbers["num_train_epochs"]))
    return {**numbers, "warmup_ratio": share if warmup else arguments.get("warmup_ratio", share)}


def honoured(arguments: Mapping[str, Any], *, gpu: bool) -> tuple[dict[str, Any], list[str]]:
    """Returns `arguments` as a machine with or without a GPU can honour them, and what is done instead."""
    if gpu:
        return dict(arguments), []
    warnings = []
    kept = dict(arguments)
    for name in ("fp16", "bf16", "tf32", "use_liger_kernel"):
        if kept.pop(name, False):
            warnings.append(f"--{name} needs a GPU, and none is used here: training in float32 instead")
    return {**kept, "dataloader_pin_memory": False, "use_cpu": True}, warnings
