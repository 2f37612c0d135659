"""Which values a request may hold: the one door for arguments, whoever gives them.

A command line, a YAML file, `SearchConfig` from Python, the config.yaml of a resumed run and what a search space
suggests are read here, in the types that FlagEmbedding's and transformers' own dataclasses declare.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from trainables.scoring.metric import Metric
from tuner.request import values
from tuner.request.arguments import DROPPED, RENAMED, Argument, upstream_arguments
from tuner.request.taken_over import TAKEN_OVER, impossible


def _is_format(template: str | None) -> bool:
    try:
        return template is None or bool(template.replace("\\n", "\n").format("instruction", "text"))
    except (IndexError, KeyError, ValueError, AttributeError):
        return False


UPSTREAM_RULES: Mapping[str, tuple[Callable[[Any], bool], str, str]] = {
    "learning_rate": (lambda v: 0 < v < 1, "0 < learning_rate < 1", "BGE-M3 is usually fine-tuned with 1e-6 to 3e-5"),
    "temperature": (lambda v: v is None or v > 0, "temperature > 0", "FlagEmbedding's examples use 0.01 to 0.05"),
    "train_group_size": (lambda v: v >= 1, "train_group_size >= 1", "1 positive and N - 1 negatives: 2, 4, 8 or 16"),
    "per_device_train_batch_size": (lambda v: v >= 1, "per_device_train_batch_size >= 1", "use 1 or more"),
    "gradient_accumulation_steps": (lambda v: v >= 1, "gradient_accumulation_steps >= 1", "use 1 or more"),
    "num_train_epochs": (lambda v: v > 0, "num_train_epochs > 0", "1 or 2 epochs are usual"),
    "warmup_ratio": (lambda v: 0 <= v < 1, "0 <= warmup_ratio < 1", "0.05 to 0.2 are usual"),
    "warmup_steps": (lambda v: v >= 0, "warmup_steps >= 0", "a number of steps, or below 1 a share of them"),
    "weight_decay": (lambda v: v >= 0, "weight_decay >= 0", "0 to 0.1 are usual"),
    "max_grad_norm": (lambda v: v >= 0, "max_grad_norm >= 0", "1.0 is usual; 0 does not clip"),
    "adam_beta1": (lambda v: 0 <= v < 1, "0 <= adam_beta1 < 1", "0.9 is usual"),
    "adam_beta2": (lambda v: 0 <= v < 1, "0 <= adam_beta2 < 1", "0.95 to 0.999 are usual"),
    "adam_epsilon": (lambda v: v >= 0, "adam_epsilon >= 0", "1e-8 is usual"),
    "logging_steps": (lambda v: v > 0, "logging_steps > 0", "use 1 or more"),
    "dataloader_num_workers": (lambda v: v >= 0, "dataloader_num_workers >= 0", "0 loads in the trial's own process"),
    "max_example_num_per_dataset": (lambda v: v >= 1, "max_example_num_per_dataset >= 1", "leave it out to use all"),
    "seed": (lambda v: 0 <= v < 2**32, "0 <= seed < 2**32", "42 is usual"),
    "data_seed": (lambda v: v is None or 0 <= v < 2**32, "0 <= data_seed < 2**32", "leave it out to use seed"),
    "query_instruction_format": (_is_format, "it must be a format of two texts", "'{}{}' puts one after the other"),
    "passage_instruction_format": (_is_format, "it must be a format of two texts", "'{}{}' puts one after the other"),
    "query_max_len": (lambda v: v >= 3, "query_max_len >= 3", "it counts tokens, 2 of them special"),
    "passage_max_len": (lambda v: v >= 3, "passage_max_len >= 3", "it counts tokens, 2 of them special"),
    "pad_to_multiple_of": (lambda v: v is None or v >= 1, "pad_to_multiple_of >= 1", "8 suits GPUs"),
    "shuffle_ratio": (lambda v: 0 <= v <= 1, "0 <= shuffle_ratio <= 1", "leave it out to never shuffle"),
    "lora_rank": (lambda v: v >= 1, "lora_rank >= 1", "8 to 64 are usual"),
    "lora_alpha": (lambda v: v > 0, "lora_alpha > 0", "twice the lora_rank is usual"),
    "lora_dropout": (lambda v: 0 <= v < 1, "0 <= lora_dropout < 1", "0 to 0.1 are usual"),
    "use_mrl": (lambda v: not v, "use_mrl must be False", "FlagEmbedding's M3 model does not implement it"),
}
"""Argument -> (predicate, rule, remedy) for values that FlagEmbedding accepts, then fails on or never learns with."""

_WARMUP_RATIO = Argument(
    name="warmup_ratio",
    group="training",
    annotation="float",
    default=None,
    help="Share of the steps over which the learning rate rises.",
    choices=(),
    is_list=False,
)
_OLD_NAMES = ("group_by_length", *DROPPED, *RENAMED)


@cache
def accepted_arguments() -> Mapping[str, Argument]:
    """Every upstream argument that a request may hold, those that transformers has renamed or dropped included."""
    arguments = dict(upstream_arguments())
    for old in _OLD_NAMES:
        like = RENAMED.get(old, "fp16")
        arguments.setdefault(old, dataclasses.replace(arguments[like], name=old))
    arguments.setdefault("warmup_ratio", _WARMUP_RATIO)
    return arguments


def read_argument(name: str, value: Any) -> Any:
    """Returns `value` in the type of the argument `name`.

    Raises:
        ValueError: There is no such argument, the value cannot be read as its type, or breaks its rule.
    """
    argument = accepted_arguments().get(name)
    if argument is None:
        raise ValueError(f"no argument of FlagEmbedding or transformers{nearest(name, accepted_arguments())}")
    read = argument.parse(value)
    holds, rule, remedy = UPSTREAM_RULES.get(name, _FREE)
    if read is not None and not holds(read):
        raise ValueError(f"{rule} must hold, but got {read!r}; {remedy}")
    return read


_FREE: tuple[Callable[[Any], bool], str, str] = (lambda _: True, "", "")


def read_arguments(given: Any, options: Iterable[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Returns arguments in their types and under their present names, and one line for each that cannot be read.

    Args:
        given: Names and values; what is None was not given.
        options: Names of the search's own options, which are no arguments.
    """
    given = values.plain(given)
    if not isinstance(given, Mapping):
        return {}, [f"arguments must be a mapping of names and values, but got {values.shown(given)}"]
    read: dict[str, Any] = {}
    problems: list[str] = []
    known, own = accepted_arguments(), [*options]
    for name, value in given.items():
        if not isinstance(name, str) or name not in known:
            problems.append(unknown_argument(name, own))
        elif value is not None:
            try:
                read[RENAMED.get(name, name)] = read_argument(name, value)
            except ValueError as error:
                problems.append(f"--{name}: {error}")
    return {name: value for name, value in read.items() if value is not None}, problems


def read_suggestion(name: str, value: Any) -> Any:
    """Returns what a search space makes of the argument `name`, as `read_argument` does.

    Raises:
        ValueError: Also where a space may not vary the argument: the search is over one model and its data.
    """
    if TAKEN_OVER.get(name):
        raise ValueError(f"a trial does not take it: {TAKEN_OVER[name]}")
    if name in _NOT_VARIED:
        raise ValueError("the search is over one value of it, which no space varies: give it as a flag")
    return read_argument(name, value)


_NOT_VARIED = frozenset(
    {
        *("model_name_or_path", "config_name", "tokenizer_name", "train_data", "cache_dir", "cache_path", "token"),
        *("trust_remote_code", "output_dir", "overwrite_output_dir", "run_name", "report_to", "max_steps", "hub_token"),
        *TAKEN_OVER,
    }
)


def unknown_argument(name: Any, options: Iterable[str] = ()) -> str:
    """Returns the line that refuses an argument of that name, with the nearest one."""
    own = [*options]
    if name in own:
        return f"{name} is the search's own, no argument of a trial: give it beside them, as SearchConfig({name}=...)"
    names = [*own, *accepted_arguments(), "config"]
    return f"--{name} is no argument of the search, FlagEmbedding or transformers{nearest(str(name), names)}"


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns what a refusal of `name` ends with: the nearest of `names`."""
    close = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), names, n=1, cutoff=0.6)
    return f"; did you mean --{close[0]}?" if close else "; see --help"


def contradictions(arguments: Mapping[str, Any], *, workers: int, metric: Metric | None = None) -> list[str]:
    """Returns one line for each pair of arguments that exclude each other, or with which nothing is learnt.

    Args:
        arguments: Read; upstream's defaults hold for those that are not in it.
        workers: Processes of a trial.
        metric: The objective; None where it could not be read.
    """
    return [
        message
        for broken, message in (
            (
                arguments.get("fp16") and arguments.get("bf16"),
                "--fp16 and --bf16 exclude each other, but both are given; keep one (bf16 on A10G and newer)",
            ),
            (
                arguments.get("fix_encoder") and metric and not _trains_heads(arguments, metric),
                f"--fix_encoder: nothing that --metric {metric} measures would be trained; drop it, or train and "
                "measure the other heads (--unified_finetuning True --metric hybrid.ndcg_at_10)",
            ),
            (
                arguments.get("fix_encoder") and arguments.get("use_lora"),
                "--fix_encoder and --use_lora exclude each other: adapters train the encoder; keep one",
            ),
            *((True, message) for message in impossible(arguments)),
            (lacks_negatives(arguments, workers), no_negatives(arguments)),
            *(
                (
                    arguments.get(name) and not arguments.get("dataloader_num_workers"),
                    f"--{name} needs --dataloader_num_workers of 1 or more; drop it, or give both",
                )
                for name in _OF_LOADERS
            ),
        )
        if broken
    ]


_OF_LOADERS = ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context")


def _trains_heads(arguments: Mapping[str, Any], metric: Metric) -> bool:
    return bool(arguments.get("unified_finetuning")) and metric.heads != {"dense"}


def lacks_negatives(arguments: Mapping[str, Any], workers: int) -> bool:
    """Whether each query is compared with its own passage alone: then the loss is 0, whatever the model does."""
    known = upstream_arguments()
    batch, group = (arguments.get(name, known[name].default) for name in _CANDIDATES)
    others = workers if arguments.get("negatives_cross_device") else 1
    return bool(batch * group * others < 2)


_CANDIDATES = ("per_device_train_batch_size", "train_group_size")


def no_negatives(arguments: Mapping[str, Any]) -> str:
    """Returns the line that says so."""
    said = " ".join(f"--{name} {arguments.get(name)}" for name in _CANDIDATES)
    return (
        f"{said}: a query is compared with no passage but its own, so the loss is 0 and nothing is learnt; give a "
        "--train_group_size or a --per_device_train_batch_size of 2 or more"
    )
