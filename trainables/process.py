"""One process, many trials: what training leaves behind in the process is undone after each."""

import gc
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from accelerate.state import AcceleratorState, GradientState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from trainables.failures import chain
from trainables.loopback import join_on_this_machine

_BUILD_SECONDS = 900.0
"""A build that takes longer was killed."""

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def trial_process(log: Path) -> Iterator[None]:
    """Runs a block with its log in a file and without a trace in the process.

    Accelerate's state, transformers' DeepSpeed configuration, environment variables, log handlers, the precision of
    float32 and unreferenced memory are those from before the block when it ends.

    Args:
        log: file that every logger's records of level INFO and above are appended to.
    """
    environment = dict(os.environ)
    with ExitStack() as stack:
        stack.callback(_collect)
        stack.callback(_restore_environment, environment)
        stack.callback(_restore_determinism, torch.are_deterministic_algorithms_enabled())
        stack.enter_context(_precision_kept())
        stack.callback(_reset_accelerate)
        stack.enter_context(_logging_to(log))
        _reset_accelerate()
        yield


@contextmanager
def process_group() -> Iterator[None]:
    """Makes sure that there is a process group: the caller's, or one of this process alone for the block.

    DeepSpeed and `negatives_cross_device` need one even where one process trains.
    """
    if dist.is_initialized():
        yield
        return
    environment = dict(os.environ)
    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    try:
        join_on_this_machine("nccl" if torch.cuda.is_available() else "gloo")
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        _restore_environment(environment)


def remove_stale_build_locks(folder: Path) -> None:
    """Removes the locks of builds that were killed.

    DeepSpeed compiles its optimizer with torch's extension builder, which waits without end for a lock file that
    nobody holds any more. A build takes a minute or two.

    Args:
        folder: of torch's extensions, one folder an extension at any depth.
    """
    for lock in folder.rglob("lock"):
        if time.time() - lock.stat().st_mtime > _BUILD_SECONDS:
            lock.unlink(missing_ok=True)


def name_architectures_plainly() -> None:
    """Names the architectures of ``TORCH_CUDA_ARCH_LIST`` as DeepSpeed reads them: 9.0a, which PyTorch knows, as 9.0.

    It compiles its optimizer for them, which uses nothing that only the variant has (DeepSpeed's
    ``CUDAOpBuilder.compute_capability_args``).
    """
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = re.sub(r"(?<=\d)[a-z]", "", listed)


def extensions_folder() -> Path:
    """Returns where torch builds extensions."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions")).expanduser()


def rank() -> int:
    """Returns this process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Returns the number of processes that train this trial."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def _logging_to(log: Path) -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    file = logging.FileHandler(log)
    file.setFormatter(logging.Formatter(_FORMAT))
    root.handlers = [file]
    root.setLevel(logging.INFO)
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
    try:
        yield
    finally:
        transformers.utils.logging.disable_propagation()
        transformers.utils.logging.enable_default_handler()
        root.handlers = handlers
        root.setLevel(level)
        file.close()


def _reset_accelerate() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def _restore_environment(before: Mapping[str, str]) -> None:
    """Changes what differs and nothing else: other threads read the environment meanwhile, as AWS's SDK does."""
    for name in [name for name in os.environ if name not in before]:
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


def _restore_determinism(deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic


@contextmanager
def _precision_kept() -> Iterator[None]:
    """Takes back what `TrainingArguments(tf32=...)` has set."""
    backends: Any = torch.backends
    before = backends.fp32_precision
    try:
        yield
    finally:
        backends.fp32_precision = before


def forget(error: BaseException) -> None:
    """Gives back the memory that a failed attempt holds through its exception: models, weights and activations."""
    for each in chain(error):
        traceback.clear_frames(each.__traceback__)
    _collect()


def spare_what_is_kept() -> None:
    """Lets garbage collections pass over everything that is alive between two trials: libraries and base models.

    Accelerate collects when it begins to train and `trial_process` does at its end, 0.3 s each on half a million
    objects. To be called where nothing of a trial is alive: what is spared is never collected.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    gc.freeze()


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        _release_to_system()


def _release_to_system() -> None:
    """Hands freed memory back, so that a process does not grow with its number of trials (glibc keeps it otherwise)."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def agree(answer: bool) -> bool:
    """Returns whether every worker answered yes."""
    if world_size() == 1:
        return answer
    answers: list[bool | None] = [None] * world_size()
    dist.all_gather_object(answers, answer)
    return all(answers)
