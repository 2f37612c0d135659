"""``python -m trainables.m3.checks``: what FlagEmbedding's and transformers' own classes say of arguments.

Standard input is a JSON object of arguments; the last line printed is a JSON list, one line for each refusal. It is a
process of its own, beside the data's preparation: the imports take seconds, and the dataclasses set up devices.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainables.failures import one_line

_LATER = ("deepspeed", "negatives_cross_device")
"""Arguments that need a process group, which is checked elsewhere."""


def refusals(arguments: Mapping[str, Any], output_dir: str) -> Iterator[str]:
    """Yields one line for each thing that the libraries refuse of a trial's `arguments`."""
    from trainables.m3.runner import build_arguments

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
    import torch
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
