"""What ``--help`` says of each flag: FlagEmbedding's and transformers' arguments in one plain sentence each.

Upstream's own sentences are taken where nothing is written here; some of them are empty, of another argument, or say
what a search does otherwise. The search's own flags are told by the docstrings of `SearchConfig`.
"""

import ast
import dataclasses
import itertools
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from trainables.config import DEFAULT_MODEL
from tuner.request.arguments import DROPPED, RENAMED, Argument
from tuner.request.taken_over import IMPOSSIBLE, TAKEN_OVER

_ARGUMENTS: Mapping[str, str] = {
    # Model and data
    "model_name_or_path": "Model to fine-tune: a folder, a URL of object storage, or a name on the Hugging Face Hub. "
    f"None: {DEFAULT_MODEL}",
    "train_data": "Training data: JSON Lines, JSON arrays or Parquet with query, pos and neg; files, folders or URLs. "
    "None: the embedded example's",
    "query_max_len": "Longest query in tokens; what is longer is cut",
    "passage_max_len": "Longest passage in tokens; what is longer is cut",
    "config_name": "Name or folder of the model's configuration. None: that of the model",
    "tokenizer_name": "Name or folder of the tokenizer. None: that of the model",
    "cache_dir": "Folder that models are downloaded to. None: Hugging Face's cache",
    "cache_path": "Folder for the libraries' caches of data. None: Hugging Face's cache",
    "trust_remote_code": "Run Python code that lies beside the model's weights",
    "token": "Token of the Hugging Face Hub. None: that of `hf auth login`",
    "pad_to_multiple_of": "Pad texts to a multiple of so many tokens",
    "max_example_num_per_dataset": "Most rows that are used of each file",
    "query_instruction_for_retrieval": "Instruction put before every query",
    "query_instruction_format": "How an instruction and a query are put together",
    "passage_instruction_for_retrieval": "Instruction put before every passage",
    "passage_instruction_format": "How an instruction and a passage are put together",
    "knowledge_distillation": "Learn from a teacher's scores, pos_scores and neg_scores in every row",
    "shuffle_ratio": "Share of the passages whose text is shuffled",
    "same_dataset_within_batch": "Make each batch of the rows of one file",
    "small_threshold": "With same_dataset_within_batch, files of a folder with fewer rows are put together",
    "drop_threshold": "With same_dataset_within_batch, what was put together is dropped below so many rows",
    # FlagEmbedding's training
    "temperature": "What similarities are divided by in the loss; the smaller, the sharper",
    "train_group_size": "Passages for each query: one positive and the rest negatives",
    "negatives_cross_device": "Share negatives across a trial's workers (dense loss only)",
    "fix_position_embedding": "Do not train the position embeddings",
    "sentence_pooling_method": "How a text's vector is made of its tokens' vectors: cls, mean or last_token",
    "normalize_embeddings": "Scale vectors to length 1",
    "sub_batch_size": "Encode a batch in parts of so many texts. None: as many as fit in memory",
    "kd_loss_type": "Loss of knowledge distillation: kl_div or m3_kd_loss",
    "use_mrl": "Matryoshka vectors, which FlagEmbedding's M3 model has not",
    "mrl_dims": "Lengths of Matryoshka vectors, which FlagEmbedding's M3 model has not",
    "colbert_dim": "Length of the ColBERT vectors; -1 is that of the model",
    "unified_finetuning": "Train the sparse and ColBERT vectors together with the dense ones",
    "use_self_distill": "With unified_finetuning, let the three kinds of vectors learn from their sum",
    "self_distill_start_step": "Step from which use_self_distill counts; -1 is from the first",
    "fix_encoder": "Do not train the encoder, only the sparse and ColBERT layers",
    "use_lora": "Train low-rank adapters of the encoder (LoRA) and the sparse and ColBERT layers, nothing else",
    "lora_rank": "Rank of the adapters",
    "lora_alpha": "Adapters count lora_alpha / lora_rank times: 16 / 64 in FlagEmbedding, too; twice the rank is usual",
    "lora_dropout": "Dropout rate of what goes into the adapters",
    "target_modules": "Names of the encoder's linear layers that get adapters. None: all of them",
    # transformers' training
    "learning_rate": "Highest learning rate",
    "per_device_train_batch_size": "Queries in a batch of one worker",
    "num_train_epochs": "How often a trial goes through the training rows",
    "max_steps": "Steps of a trial, in place of num_train_epochs; -1 goes by the epochs",
    "warmup_ratio": "Share of the steps over which the learning rate rises. None: 0",
    "warmup_steps": "Steps over which the learning rate rises; below 1 a share of all",
    "lr_scheduler_type": "How the learning rate falls after the warm-up, as transformers names it",
    "lr_scheduler_kwargs": "What lr_scheduler_type takes beside, as JSON",
    "optim": "Optimizer, as transformers names it. None: transformers' choice for the PyTorch that is installed",
    "optim_args": "What the optimizer takes beside",
    "optim_target_modules": "Modules that GaLore and APOLLO optimize",
    "adam_beta1": "Adam's decay of the mean of gradients",
    "adam_beta2": "Adam's decay of the mean of their squares",
    "adam_epsilon": "What Adam adds to what it divides by",
    "max_grad_norm": "Length that gradients are cut to; 0 does not cut",
    "gradient_accumulation_steps": "Batches whose gradients are summed for one step",
    "torch_compile": "Compile the model with torch.compile",
    "use_fast_tokenizer": "Use the tokenizer's fast version",
    "weight_decay": "Weight decay, but for biases and norms",
    "average_tokens_across_devices": "Count the tokens of a batch across the workers",
    "bf16": "Train in bfloat16 mixed precision, on A10G and newer GPUs",
    "fp16": "Train in float16 mixed precision, on a GPU",
    "tf32": "Let Ampere and newer GPUs multiply float32 as TF32. None: PyTorch's choice",
    "deepspeed": "DeepSpeed's JSON configuration; FlagEmbedding's ds_stage0.json is built in",
    "gradient_checkpointing": "Compute layers again in the backward pass where memory is short, at the same gradients",
    "gradient_checkpointing_kwargs": "What gradient checkpointing takes beside, as JSON",
    "activation_checkpointing": "The newer name of gradient_checkpointing",
    "activation_checkpointing_kwargs": "The newer name of gradient_checkpointing_kwargs",
    "use_liger_kernel": "Use Liger's GPU kernels where the model has them",
    "liger_kernel_config": "Which of Liger's kernels are used, as JSON. None: all of them",
    "torch_compile_backend": "Backend of torch.compile",
    "torch_compile_mode": "Mode of torch.compile",
    "torch_empty_cache_steps": "Empty the GPU's cache of memory after so many steps. None: never",
    "use_cache": "Keep the keys and values of attention, which training does not use",
    "logging_strategy": "When the loss is logged: no, steps or epoch",
    "logging_steps": "Log the loss after so many steps; below 1 a share of all",
    "logging_first_step": "Log the loss of the first step, too",
    "log_on_each_node": "Log on every machine, not on the first one alone",
    "logging_nan_inf_filter": "Leave NaN and infinite losses out of the logged mean",
    "skip_memory_metrics": "Do not measure memory, which is slow",
    "project": "Project that Trackio logs to",
    "remove_unused_columns": "Leave out columns that the model does not take",
    "include_num_input_tokens_seen": "Count the tokens seen: all, non_padding or no",
    "log_level": "What the libraries log: debug, info, warning, error, critical or passive",
    "log_level_replica": "What the libraries log in workers other than the first",
    "disable_tqdm": "No progress bars of the libraries in log.txt. None: by log_level",
    "report_to": "Where each trial's curves go: tensorboard, mlflow, wandb, all or none",
    "run_name": "What trials are called in a tracker, before their number",
    "trackio_space_id": "Hugging Face Space that Trackio logs to",
    "trackio_bucket_id": "Hugging Face Bucket of that Space",
    "trackio_static_space_id": "Read-only Hugging Face Space that Trackio leaves",
    "hub_token": "Token for the Hugging Face Hub. None: that of `hf auth login`",
    "hub_private_repo": "Whether a repository that Trackio makes is private",
    "full_determinism": "Make every GPU operation repeatable, which is slow",
    "data_seed": "Seed of the order of rows. None: --seed",
    "use_cpu": "Train on the CPU though there is a GPU",
    "accelerator_config": "Accelerate's configuration: a JSON file, or JSON",
    "dataloader_drop_last": "Leave out the last batch where it is not full",
    "dataloader_num_workers": "Processes that load batches; 0 loads in the trainer's own",
    "dataloader_pin_memory": "Copy batches to the GPU from pinned memory",
    "dataloader_persistent_workers": "Keep the processes that load batches from one epoch to the next",
    "dataloader_prefetch_factor": "Batches that each loading process prepares. None: PyTorch's 2",
    "dataloader_multiprocessing_context": "How loading processes start: fork, spawn or forkserver. None: PyTorch's way",
    "dataloader_in_order": "Keep the order of batches across loading processes",
    "train_sampling_strategy": "Order of the rows: random or sequential",
    "ddp_find_unused_parameters": "Let PyTorch's data parallelism look for parameters without a gradient",
    "ddp_bucket_cap_mb": "Megabytes of gradients that workers send at once",
    "ddp_broadcast_buffers": "Send buffers from the first worker to the others",
    "ddp_static_graph": "Tell PyTorch that every step computes the same graph",
    "ddp_timeout": "How long workers wait for each other, as 30m, or a number of seconds",
    "debug": "Features that look for faults: underflow_overflow",
    "overwrite_output_dir": "Go on with the search of the same request; set that of another request aside, undeleted",
}

_METAVARS: Mapping[str, str] = {
    "run_dir": "DIR|URL", "output_dir": "DIR|URL", "resume": "DIR|URL", "warm_start": "DIR|URL", "eval_data": "DIR|URL",
    "again": "DIR|URL",
    "guard": "DIR|TASK", "train_data": "FILE|DIR|URL", "model_name_or_path": "DIR|NAME|URL", "time_budget": "TIME",
    "ddp_timeout": "TIME", "disk_budget": "SIZE", "search_space": "NAME|FILE|MODULE:FUNCTION", "storage": "URL|FILE",
    "submit": "URL", "address": "ADDRESS", "metric": "METRIC", "deepspeed": "FILE", "price_per_hour": "PRICE",
    "rungs": "SHARE", "config": "FILE", "sampler": "NAME", "pruner": "NAME", "study_name": "NAME",
    "sentence_pooling_method": "NAME", "accelerator_type": "NAME",
}  # fmt: skip
_KINDS = {"int": "N", "float": "X", "number": "X"}


def help_of_option(option: dataclasses.Field[Any]) -> str:
    """Returns a sentence on one of the search's own options, and its default as one types it."""
    said, none = _halves(_field_docs()[option.name])
    default = none if option.default in (None, ()) else typed(option.default)
    return f"{said} (default: {default})"


def help_of_argument(argument: Argument) -> str:
    """Returns a sentence on an argument of FlagEmbedding or transformers, and its default as one types it.

    Of what a search does itself, refuses, or knows under another name, it says so.
    """
    name = argument.name
    if name == "output_dir":
        return "The same as --run_dir (default: --run_dir)"
    if name in TAKEN_OVER:
        return f"Accepted; {TAKEN_OVER[name] or 'the search does the same by itself'}"
    if name in IMPOSSIBLE:
        return f"Refused: {IMPOSSIBLE[name]}"
    if name in RENAMED:
        return f"The old name of --{RENAMED[name]}"
    if name in DROPPED and name not in _ARGUMENTS:
        return f"Accepted, without effect: {DROPPED[name]}"
    said, none = _halves(_ARGUMENTS.get(name) or _first_sentence(argument.help))
    return f"{said} (default: {none if argument.default is None else typed(argument.default)})"


def metavar(name: str, annotation: str) -> str:
    """Returns what stands for the value of a flag whose type is written so."""
    kind = annotation.replace("Optional[", "").partition(" ")[0].strip("]")
    return _METAVARS.get(name) or _KINDS.get(kind, "VALUE")


def typed(value: Any) -> str:
    """Returns a value as one types it on a command line: ``0.25,0.5,1``, ``5e-5``."""
    if isinstance(value, tuple | list):
        return ",".join(map(typed, value)) or "none"
    if isinstance(value, float):
        return re.sub(r"e([-+])0+", r"e\1", f"{value:.12g}")
    return "none" if value in (None, "") else str(value)


def _halves(text: str) -> tuple[str, str]:
    """A sentence, and what its ``None: ...`` says of the default; without their full stops."""
    said, _, none = " ".join(text.split()).partition(" None: ")
    return said.rstrip("."), none.rstrip(".") or "none"


def _first_sentence(text: str) -> str:
    first = re.split(r"(?<=\w)\. ", text.replace("%%", "%"))[0].rstrip(".")
    return first[:1].upper() + first[1:].replace("`", "")


@cache
def _field_docs() -> Mapping[str, str]:
    """The docstring under each field of `SearchConfig`, read from its source."""
    source = Path(__file__).with_name("config.py").read_text("utf-8")
    (body,) = (n.body for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "SearchConfig")
    docs: dict[str, str] = {}
    for item, after in itertools.pairwise(body):
        if isinstance(item, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            docs[ast.unparse(item.target)] = str(after.value.value)
    return docs
