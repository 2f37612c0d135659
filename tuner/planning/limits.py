"""What a model and its data forbid: more tokens than it has positions, more rows in a batch than there are."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.positions import positions_of
from trainables.scoring.metric import Metric
from tuner.data.dataset import Dataset
from tuner.errors import RequestError
from tuner.request.arguments import upstream_arguments
from tuner.request.checks import contradictions, lacks_negatives, no_negatives
from tuner.request.config import SearchConfig

_LENGTHS = ("query_max_len", "passage_max_len")
_BATCH = "per_device_train_batch_size"
_TEACHER = "knowledge_distillation"
NO_SCORES = (
    f"--{_TEACHER} True, which needs pos_scores and neg_scores in every row; python -m tuner.data mine ROWS --to FILE "
    "--teacher CROSS_ENCODER writes them"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What holds for every trial of a search."""

    positions: int | None
    """Tokens that a text may have, special tokens included; None: as many as fit in memory."""
    rows: int
    """Training rows."""
    has_scores: bool = True
    """Whether every row has a teacher's scores."""
    sources: Sequence[Mapping[str, Any]] = ()
    """What manifest.json says of each of them: ``path``, ``files`` with ``rows``, ``no_in_batch_neg``."""
    workers: int
    """Processes of a trial."""
    metric: Metric
    """The objective."""


def limits_of(model: Path, config: SearchConfig, dataset: Dataset) -> Limits:
    """Returns what holds for a search from the model in a folder, over that data.

    Raises:
        RequestError: The model lacks what no trial could do without.
    """
    try:
        positions = positions_of(model, config.arguments.get("config_name"))
    except ValueError as error:
        raise RequestError([f"--model_name_or_path {model}: {error}"]) from error
    if problems := [*missing_parts(model, config.arguments)]:
        raise RequestError(problems)
    return Limits(
        positions=positions,
        rows=dataset.rows_used(config.arguments),
        has_scores=dataset.has_scores,
        sources=dataset.manifest["train"],
        workers=config.workers,
        metric=config.objective,
    )


def check_limits(
    limits: Limits, arguments: Mapping[str, Any], reached: Mapping[str, Sequence[Any]], space: str
) -> list[str]:
    """Returns what a user should know of `space`, as `beyond_reach`, whose arguments these are.

    Raises:
        RequestError: The user's own settings, or what the space reaches, are beyond a limit.
    """
    problems, notes = beyond_reach(limits, arguments, reached, space)
    problems = broken_limits(limits, arguments) + problems
    if problems:
        raise RequestError(problems)
    return notes


def missing_parts(model: Path, arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yields one line for each part of the model in a folder that no trial could load."""
    if not any(file for pattern in ("*.safetensors", "*.bin") for file in model.glob(pattern)):
        yield f"--model_name_or_path {model}: there are no weights in it (*.safetensors or pytorch_model.bin)"
    own = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model", "vocab.json")
    if not arguments.get("tokenizer_name") and not any((model / name).is_file() for name in own):
        yield f"--model_name_or_path {model}: there is no tokenizer in it; add one, or name it with --tokenizer_name"
    elif not arguments.get("tokenizer_name"):
        yield from _beyond_the_vocabulary(model)


def _beyond_the_vocabulary(model: Path) -> Iterator[str]:
    """A token whose number is no row of the embeddings ends the trial that meets it."""
    try:
        tokens = json.loads((model / "tokenizer.json").read_text("utf-8"))
        size = json.loads((model / "config.json").read_text("utf-8"))["vocab_size"]
        vocabulary, added = tokens["model"]["vocab"], [token["id"] for token in tokens.get("added_tokens", ())]
        numbers = vocabulary.values() if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        most = max([*numbers, *added])
        beyond = most >= size
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # other tokenizers keep their vocabulary elsewhere
    if beyond:
        yield (
            f"--model_name_or_path {model}: its tokenizer has the token {most:,}, but the model has embeddings for "
            f"{size:,} tokens (vocab_size); they belong to different models"
        )


def fitting_lengths(positions: int | None, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the lengths that were not given and whose defaults are beyond the model's positions, and says so."""
    known = upstream_arguments()
    beyond = [name for name in _LENGTHS if name not in arguments and (positions or math.inf) < known[name].default]
    lowered = dict.fromkeys(beyond, positions)
    return lowered, [
        f"--{name} is {known[name].default} by default, but the model has positions for {positions} tokens: texts are "
        f"cut to {positions}"
        for name in beyond
    ]


def broken_limits(limits: Limits, arguments: Mapping[str, Any]) -> list[str]:
    """Returns one line for each limit that the user's own `arguments` are beyond."""
    known = upstream_arguments()
    lengths = ((name, arguments.get(name, known[name].default)) for name in _LENGTHS)
    problems = [f"--{name} {value}: {_no_position(limits)}" for name, value in lengths if _is_beyond(limits, value)]
    batch = int(arguments.get(_BATCH, known[_BATCH].default))
    if arguments.get("same_dataset_within_batch"):
        return problems + _of_same_dataset(limits, arguments)
    if arguments.get("dataloader_drop_last") and batch * limits.workers > limits.rows:
        problems.append(f"--{_BATCH} {batch}: {_no_batch(limits)}")
    return problems


def _of_same_dataset(limits: Limits, arguments: Mapping[str, Any]) -> list[str]:
    """Batches of one source each: small sources are left out, and queries of some have their own passages alone."""
    problems = []
    small, drop = (int(arguments.get(name) or 0) for name in ("small_threshold", "drop_threshold"))
    if limits.sources and not any(_kept(source, small, drop) for source in limits.sources):
        problems.append(f"--small_threshold {small} --drop_threshold {drop}: no file has so many rows, so none is left")
    alone = bool(limits.sources) and all(source["no_in_batch_neg"] for source in limits.sources)
    if alone and int(arguments.get("train_group_size") or 0) == 1:
        problems.append(
            "--train_group_size 1: the files' names end in no_in_batch_neg, so a query is compared with no passage but "
            "its own, and nothing is learnt; give 2 or more"
        )
    return problems


def _kept(source: Mapping[str, Any], small: int, drop: int) -> bool:
    rows = [int(file["rows"]) for file in source["files"]]
    in_folder = not str(source["path"]).endswith(".jsonl")
    left = sum(count for count in rows if count < small)
    return any(count >= small for count in rows) or (in_folder and left >= drop)


def beyond_reach(
    limits: Limits, arguments: Mapping[str, Any], reached: Mapping[str, Sequence[Any]], space: str
) -> tuple[list[str], list[str]]:
    """Returns what is wrong with what a space can reach, and what a user should know of it, one line each.

    Args:
        limits: Of the search.
        arguments: The user's own.
        reached: Argument -> values that the space was seen to give it.
        space: What ``--search_space`` calls it.
    """
    problems = [
        f"--search_space {space}: it reaches {name} {max(values)}: {_no_position(limits)}"
        for name in _LENGTHS
        if (values := reached.get(name)) and _is_beyond(limits, max(values))
    ]
    batches = reached.get(_BATCH) or [0]
    drops = any([arguments.get("dataloader_drop_last"), *reached.get("dataloader_drop_last", ())])
    drops &= not arguments.get("same_dataset_within_batch")
    if drops and max(batches) * limits.workers > limits.rows:
        problems.append(f"--search_space {space}: it reaches {_BATCH} {max(batches)}: {_no_batch(limits)}")
    if any(reached.get(_TEACHER, ())) and not limits.has_scores:
        problems.append(f"--search_space {space}: it reaches {NO_SCORES}")
    least = {name: min(reached[name]) for name in (_BATCH, "train_group_size") if reached.get(name)}
    poorest = {**arguments, **least}
    lacking = least and lacks_negatives(poorest, limits.workers) and not lacks_negatives(arguments, limits.workers)
    notes = [f"--search_space {space}: it can reach {no_negatives(poorest)}"] if lacking else []
    others = {
        line
        for name in ("fp16", "bf16", "fix_encoder", "use_lora", "unified_finetuning")
        for value in reached.get(name, ())
        for line in contradictions({**arguments, name: value}, workers=limits.workers, metric=limits.metric)
    }
    return problems + sorted(f"--search_space {space}: it can reach {line}" for line in others), notes


def _is_beyond(limits: Limits, length: int) -> bool:
    return limits.positions is not None and length > limits.positions


def _no_position(limits: Limits) -> str:
    return (
        f"the model has positions for {limits.positions} tokens, so a longer text ends the trial; give at most "
        f"{limits.positions}"
    )


def _no_batch(limits: Limits) -> str:
    each = f"with {limits.workers} workers, " if limits.workers > 1 else ""
    return (
        f"{each}there are {limits.rows} training rows, so --dataloader_drop_last leaves no batch; lower it, or drop "
        "the flag"
    )
