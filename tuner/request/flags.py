"""The flags of ``python -m tuner.search``, grouped as its help shows them."""

import argparse
import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from tuner.errors import RequestError
from tuner.request.arguments import DROPPED, RENAMED, Argument
from tuner.request.checks import accepted_arguments
from tuner.request.config import SearchConfig, option_types
from tuner.request.help_texts import help_of_argument, help_of_option, metavar
from tuner.request.taken_over import IMPOSSIBLE, TAKEN_OVER
from tuner.versions import add_version

_USAGE = "python -m tuner.search [FLAG VALUE]..."
_DESCRIPTION = """\
Searches better hyperparameters for a BGE-M3 fine-tune, and says whether that
beats the base model. Takes the flags of FlagEmbedding's own command,
`torchrun -m FlagEmbedding.finetune.embedder.encoder_only.m3`, by their names:
your values are the first trial. Without flags it runs the embedded example.
"""
_EPILOG = """\
examples:
  the embedded example, in under 5 minutes on 2 cores:
    python -m tuner.search
  your own data, checked and planned first (then again without --dry_run):
    python -m tuner.search --model_name_or_path BAAI/bge-m3 \\
      --train_data rows.jsonl --learning_rate 1e-5 --run_dir runs/1 --dry_run
  continue a stopped search, or extend a finished one:
    python -m tuner.search --resume runs/1 --num_trials 32
  search again on data that grew, and compare with what the first one found:
    python -m tuner.search --again runs/1 --train_data more.jsonl

A flag without a value is True (--fp16), and --flag-name is --flag_name.
--help-all lists all arguments of FlagEmbedding and transformers.

exit codes: 0 done; 1 stopped by the machine; 2 the request or the data is
wrong, or with --dry_run your own settings do not train; 3 every trial failed;
129, 130, 143 terminal closed, interrupted, terminated.
"""
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "data and model": ("model_name_or_path", "train_data", "eval_data", "query_max_len", "passage_max_len"),
    "training (the first trial; --search_space varies some of these)": (
        *("learning_rate", "temperature", "train_group_size", "per_device_train_batch_size", "num_train_epochs"),
        *("warmup_ratio", "fp16", "bf16", "gradient_checkpointing", "deepspeed", "sentence_pooling_method"),
        *("normalize_embeddings", "unified_finetuning", "use_self_distill", "use_lora", "lora_rank", "lora_alpha"),
    ),
    "search": (
        *("num_trials", "search_space", "sampler", "pruner", "reduction_factor", "rungs", "warm_start", "patience"),
        *("candidate_pool_size", "again", "finalists", "finalist_seeds", "seed"),
    ),
    "judgement": ("metric", "guard", "guard_tolerance", "guard_constraint"),
    "resources": (
        *("gpus_per_trial", "concurrent_trials", "workers_per_trial", "accelerator_type"),
        *("time_budget", "disk_budget", "price_per_hour"),
    ),
    "where it runs": ("address", "submit", "storage", "study_name"),
    "output": (
        *("run_dir", "output_dir", "resume", "overwrite_output_dir", "replace_search", "keep_checkpoints", "dry_run"),
    ),
}
"""What ``--help`` shows, in its order."""
_REST = {
    "model": "other arguments of the model",
    "data": "other arguments of the data",
    "training": "other arguments of training",
    "old": "old names",
    "taken": "accepted, and left to the search",
    "refused": "refused",
}
"""What ``--help-all`` shows after them, in its order."""
SHORT = {"replace_search": "replace"}
"""The search's own options -> what their flag is called, in YAML too."""


class Parser(argparse.ArgumentParser):
    """Raises what is wrong as a RequestError."""

    def error(self, message: str) -> NoReturn:
        if lacking := re.match(r"argument (--\w+)\S*: expected ", message):
            form = self._option_string_actions[lacking[1]].metavar
            message = f"{lacking[1]}: needs a value, {form}; see --help"
        raise RequestError([message])


class _Format(argparse.RawDescriptionHelpFormatter):
    """One spelling of each flag, beside its sentence."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs in (0, "?"):
            return ", ".join(action.option_strings[:2] if action.dest == "help" else action.option_strings[:1])
        return f"{action.option_strings[0]} {action.metavar}{'...' if action.nargs == '+' else ''}"


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        build_parser(everything=True).print_help()
        parser.exit()


def search_options() -> dict[str, dataclasses.Field[Any]]:
    """The search's own options: the fields of `SearchConfig`."""
    return {f.name: f for f in dataclasses.fields(SearchConfig) if f.name != "arguments"}


def build_parser(*, everything: bool = False) -> Parser:
    """Returns the parser of the search's command line; with `everything`, its help shows what it accepts at all."""
    parser = Parser(
        usage=_USAGE, description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False, add_help=False,
        formatter_class=_Format,
    )  # fmt: skip
    known = {name: argument for name, argument in accepted_arguments().items() if name not in search_options()}
    for title, names in _GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names:
            _add_argument(group, known[name]) if name in known else _add_option(group, name)
    group.add_argument(
        "--config", metavar="FILE", help="YAML file with the same names, over which flags win (default: none)"
    )
    group.add_argument("-h", "--help", action="help", help="print this, and exit")
    group.add_argument(*spellings("help_all")[::-1], action=_HelpAll, nargs=0, help="print it with all arguments")
    add_version(group)
    shown = {name for names in _GROUPS.values() for name in names}
    for kind, title in _REST.items():
        group = parser.add_argument_group(title if everything else None)
        for name, argument in known.items():
            if name not in shown and _kind(argument) == kind:
                _add_argument(group, argument, hidden=not everything)
    return parser


def spellings(name: str) -> list[str]:
    """Returns the flags by which an option is given."""
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def _kind(argument: Argument) -> str:
    if argument.name in RENAMED or argument.name in DROPPED:
        return "old"
    if argument.name in TAKEN_OVER:
        return "taken"
    return "refused" if argument.name in IMPOSSIBLE else argument.group


def _add_option(group: argparse._ArgumentGroup, name: str) -> None:
    option, like = search_options()[name], option_types()[name]
    shown = metavar(name, like.annotation)
    text = _escaped(help_of_option(option))
    group.add_argument(*spellings(SHORT.get(name, name)), dest=name, help=text, **_arity(like, shown))


def _add_argument(group: argparse._ArgumentGroup, argument: Argument, *, hidden: bool = False) -> None:
    name = argument.name
    text = argparse.SUPPRESS if hidden else _escaped(help_of_argument(argument))
    arity = _arity(argument, metavar(name, argument.annotation))
    group.add_argument(*spellings(name), dest=name, help=text, **arity)
    if argument.is_bool and argument.default is True:
        no = spellings(f"no_{name}")
        group.add_argument(*no, dest=name, action="store_const", const="False", help=argparse.SUPPRESS)


def _arity(argument: Argument, shown: str) -> dict[str, Any]:
    if argument.is_bool:
        return {"nargs": "?", "const": "True", "metavar": "BOOL"}
    return {"nargs": "+" if argument.is_list else None, "metavar": shown}


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
