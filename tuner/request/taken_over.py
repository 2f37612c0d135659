"""Arguments of transformers that a trial does not take as they are: what is done instead, or why it cannot be."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from tuner.request.arguments import upstream_arguments

_SCORED = "every trial is scored on dev at its rungs (--rungs), and on --guard"
_BEST = "the weights of the best rung are kept (--metric, --keep_checkpoints)"
_SAVED = "training states and the best rungs' weights are saved as the search needs them (--keep_checkpoints)"
_EXPORTED = "nothing is pushed; python -m tuner.export writes the bundle of a finished search"
_GROUPED = "rows are drawn at random, and each batch's texts are encoded in groups of similar length"
_HALVED = "what does not fit is split into sub-batches, with the same loss (sub_batch_size)"
_PLACED = "Ray places the workers and joins them"
_IN_LOSS = "it has no effect: FlagEmbedding's loss has no such term"

_INSTEAD = {
    _SCORED: (
        *("do_eval", "do_predict", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
        *("per_device_eval_batch_size", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
        *("batch_eval_metrics", "prediction_loss_only", "bf16_full_eval", "fp16_full_eval", "include_for_metrics"),
        "label_names",
    ),
    _BEST: ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    _SAVED: (
        *(
            "save_steps",
            "save_strategy",
            "save_total_limit",
            "save_only_model",
            "save_on_each_node",
            "ignore_data_skip",
        ),
        *("enable_jit_checkpoint", "restore_callback_states_from_checkpoint"),
        "resume_from_checkpoint",
    ),
    _EXPORTED: (
        *("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"),
    ),
    _GROUPED: ("group_by_length", "length_column_name"),
    _HALVED: ("auto_find_batch_size",),
    _PLACED: ("local_rank", "ddp_backend"),
    _IN_LOSS: ("label_smoothing_factor",),
    "": ("do_train", "output_dir"),
}
TAKEN_OVER: Mapping[str, str] = MappingProxyType({name: why for why, names in _INSTEAD.items() for name in names})
"""Argument -> what the search does instead; empty where it does the same."""

_LENGTH_SAMPLERS = ("group_by_length", "batch_rebalance")
_NOISE = "its noise is put into an embedding layer that FlagEmbedding's model does not show to transformers"
_SHARDED = "checkpoints and scores are taken from whole models; --deepspeed shards what an optimizer holds"
_BY_SCORES = ("reduce_lr_on_plateau", "greedy")
IMPOSSIBLE: Mapping[str, str] = {
    "neftune_noise_alpha": _NOISE,
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "parallelism_config": _SHARDED,
}


def taken_over(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns `arguments` without those that the search takes over, and one line for each thing done instead."""
    kept = {name: value for name, value in arguments.items() if name not in TAKEN_OVER and name not in IMPOSSIBLE}
    given: dict[str, list[str]] = {}
    for name, value in arguments.items():
        if TAKEN_OVER.get(name) and not _is_default(name, value):
            given.setdefault(TAKEN_OVER[name], []).append(f"--{name}")
    if kept.get("train_sampling_strategy") in _LENGTH_SAMPLERS:
        given.setdefault(_GROUPED, []).append(f"--train_sampling_strategy {kept.pop('train_sampling_strategy')}")
    return kept, [f"{', '.join(names)}: {instead}" for instead, names in given.items()]


def _is_default(name: str, value: Any) -> bool:
    """Whether it is what transformers does anyway, or asks for nothing."""
    argument = upstream_arguments().get(name)
    return not value or str(value) in ("no", "-1") or (argument is not None and value == argument.default)


def impossible(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yields one line for each argument with which no trial can train."""
    for name, why in IMPOSSIBLE.items():
        if arguments.get(name) and not (name == "fsdp" and str(arguments[name]).lower() in ("false", "no")):
            yield f"--{name}: {why}; drop it"
    if (schedule := arguments.get("lr_scheduler_type")) in _BY_SCORES:
        yield f"--lr_scheduler_type {schedule}: it follows scores, which a search takes at rungs alone; give another"
