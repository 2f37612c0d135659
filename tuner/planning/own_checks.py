"""The libraries' own checks of the user's arguments, made in another process while the data are prepared."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner.errors import RequestError, counted
from tuner.request.arguments import honoured, translated, upstream_arguments
from tuner.request.config import SECRETS, SearchConfig
from tuner.request.taken_over import taken_over

_SECONDS = 300.0
_CHECKED = (
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed"),
    *("logging_steps", "logging_first_step", "fp16", "gradient_checkpointing", "dataloader_drop_last", "deepspeed"),
    *("dataloader_num_workers", "disable_tqdm", "run_name", "use_cpu", "dataloader_pin_memory", "ddp_timeout"),
)
"""Arguments of transformers whose every value `tuner.request.checks` knows."""
_FLAG_EMBEDDINGS = (
    *("negatives_cross_device", "temperature", "fix_position_embedding", "sentence_pooling_method", "kd_loss_type"),
    *("normalize_embeddings", "sub_batch_size", "unified_finetuning", "use_self_distill", "fix_encoder", "use_mrl"),
    *("self_distill_start_step", "colbert_dim"),
)


@contextmanager
def libraries_agree(config: SearchConfig, *, gpu: bool) -> Iterator[None]:
    """Asks them while the block runs, where `config` has arguments that only they know.

    Args:
        config: The search.
        gpu: Whether trials run on a GPU of this machine; arguments that only a GPU can honour are left out otherwise.

    Raises:
        RequestError: They refuse something; what the block raises comes first.
    """
    arguments, _ = honoured(taken_over(config.arguments)[0], gpu=gpu)
    known = upstream_arguments()
    asked = {name: value for name, value in translated(arguments).items() if name not in SECRETS}
    if all(known[name].group != "training" or name in (*_CHECKED, *_FLAG_EMBEDDINGS) for name in asked):
        yield
        return
    with subprocess.Popen(
        [sys.executable, "-m", "trainables.m3.arguments"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(asked))
            process.stdin.close()
            process.stdin = None
            yield
            said = _answer(process)
        finally:
            process.kill()
    if said:
        raise RequestError([f"transformers refuses the arguments: {line}" for line in said])


def has_gpu(config: SearchConfig) -> bool:
    """Whether `config` trains on a GPU of this machine, as far as can be told without loading torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    here = not (config.address or os.environ.get("RAY_ADDRESS"))
    return config.gpus_per_trial != 0 and here and not hidden and Path("/dev/nvidia0").exists()


def machine(config: SearchConfig) -> str:
    """Returns what `config` runs on, as far as can be told without loading torch: ``2 CPUs, no GPU``."""
    cluster = config.address or os.environ.get("RAY_ADDRESS")
    if cluster:
        return f"the Ray cluster {cluster}"
    cpus = counted(len(os.sched_getaffinity(0)), "CPU")
    if not has_gpu(config):
        return f"{cpus}, no GPU"
    described = (path.read_text("utf-8", "replace") for path in Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = Counter(line.partition(":")[2].strip() for text in described for line in text.splitlines()[:1])
    return f"{cpus}, {', '.join(f'{count} x {model}' for model, count in models.items()) or 'a GPU'}"


def _answer(process: subprocess.Popen[str]) -> list[str]:
    """What it said; nothing where it ended otherwise, as for want of memory: the trials will tell."""
    try:
        out, _ = process.communicate(timeout=_SECONDS)
        return list(json.loads(out.splitlines()[-1]))
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return []
