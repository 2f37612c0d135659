"""FlagEmbedding's and transformers' arguments: their own dataclasses, filled, and what these refuse.

``python -m trainables.m3.arguments`` only checks: standard input is a JSON object of arguments, and the last line
printed a JSON list, one line for each refusal. It is a process of its own, beside the data's preparation: the imports
take seconds, and the dataclasses set up devices.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from FlagEmbedding.abc.finetune.embedder import AbsEmbedderDataArguments
from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
    EncoderOnlyEmbedderM3ModelArguments,
    EncoderOnlyEmbedderM3TrainingArguments,
)
from transformers import HfArgumentParser

from trainables.failures import one_line
from trainables.m3.lora import LoraArguments

_OURS = {
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_nan_inf_filter": False,
    "dataloader_pin_memory": torch.cuda.is_available(),
    "accelerator_config": {"non_blocking": True},
    "use_cpu": not torch.accelerator.is_available(),
}
"""Training arguments that differ from transformers' defaults unless given: the trial writes its own files, and workers
on CPUs train together (unless told to use the CPU, Accelerate lets each of them train alone)."""

_DROPPED = ("overwrite_output_dir", "save_safetensors", "group_by_length", "logging_dir")
"""Arguments of older transformers that have no effect on a trial."""

_COMPILING = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
"""Arguments by which transformers would compile the whole model, whose batches are laid out anew in each step."""

_LATER = ("deepspeed", "negatives_cross_device")
"""Arguments that need a process group, which is checked elsewhere."""


@dataclass
class ModelArguments(LoraArguments, EncoderOnlyEmbedderM3ModelArguments):  # type: ignore[misc]
    """FlagEmbedding's model arguments for M3, and those for LoRA that it has for decoder models alone."""


class Arguments(NamedTuple):
    """FlagEmbedding's three dataclasses."""

    model: ModelArguments
    data: AbsEmbedderDataArguments
    training: EncoderOnlyEmbedderM3TrainingArguments


_PARTS: Any = (ModelArguments, AbsEmbedderDataArguments, EncoderOnlyEmbedderM3TrainingArguments)


def build_arguments(arguments: Mapping[str, Any], output_dir: str) -> Arguments:
    """Builds FlagEmbedding's dataclasses from argument names and values.

    Args:
        arguments: as on FlagEmbedding's command line; `warmup_ratio` and `train_data` as one string are understood.
        output_dir: nothing of a trial that succeeds is written there but what the caller writes.

    Raises:
        ValueError: a name is unknown to all three dataclasses.
    """
    values = {name: value for name, value in arguments.items() if name not in _DROPPED + _COMPILING}
    if "warmup_ratio" in values:
        values["warmup_steps"] = values.pop("warmup_ratio")
    if isinstance(values.get("train_data"), str):
        values["train_data"] = [values["train_data"]]
    known = {each.name for part in _PARTS for each in fields(part)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"every argument must be FlagEmbedding's or transformers', but got {', '.join(unknown)}")
    return Arguments(*HfArgumentParser(_PARTS).parse_dict(_OURS | values | {"output_dir": output_dir}))


def read_command_line(argv: Sequence[str] | None = None) -> Arguments:
    """Reads FlagEmbedding's flags, and those for LoRA; None takes the process's own."""
    parser = HfArgumentParser(_PARTS)
    parser.set_defaults(**_OURS)
    values = vars(parser.parse_args(argv))
    return build_arguments(values, values["output_dir"])


def refusals(arguments: Mapping[str, Any], output_dir: str) -> Iterator[str]:
    """Yields one line for each thing that the libraries refuse of a trial's `arguments`."""
    values = {name: value for name, value in arguments.items() if name not in _LATER}
    values |= {"model_name_or_path": "any", "train_data": [output_dir]}  # both are looked at by the search itself
    try:
        training = build_arguments(values, output_dir).training
    except Exception as error:  # each field's check raises as it likes
        yield one_line(error)
        return
    for check in (_optimizer, _scheduler, _trackers):
        yield from _refusal(check, training)


def _refusal(check: Callable[[Any], object], training: Any) -> Iterator[str]:
    try:
        check(training)
    except Exception as error:
        yield one_line(error)


def _optimizer(training: Any) -> None:
    """Imports the optimizer's package, and reads ``optim_args``."""
    from torch import nn
    from transformers import Trainer

    any_model: Any = nn.Linear(1, 1)
    kind, keywords = Trainer.get_optimizer_cls_and_kwargs(training, any_model)
    kind(nn.Linear(1, 1).parameters(), **keywords)


def _scheduler(training: Any) -> None:
    """Makes the learning rate's schedule of ``lr_scheduler_type`` and ``lr_scheduler_kwargs``."""
    from transformers import get_scheduler
    from transformers.trainer_utils import SchedulerType

    name = SchedulerType(training.lr_scheduler_type)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    keywords = training.lr_scheduler_kwargs
    get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=10, scheduler_specific_kwargs=keywords).step()


def _trackers(training: Any) -> None:
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    get_reporting_integration_callbacks(training.report_to)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print("\n" + json.dumps([*refusals(json.load(sys.stdin), folder)]))
