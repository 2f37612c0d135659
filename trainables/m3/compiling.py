"""An encoder's layers compiled by PyTorch, so that what lies between their products takes few kernels."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainables.varlen import attends_text_by_text, flash, kernel_of

logger = logging.getLogger(__name__)

WORTH_STEPS = 500
"""Steps that earn the wait back: on one H200, compiling took 9 s, and saved 0.03 to 0.06 s a step (benchmarks/LOG.md).
A process compiles once for all of its trials."""


class CompiledLayers(TrainerCallback):
    """Compiles an encoder's layers when its training begins, where they can be and the training is long enough.

    One layer is compiled, for any number of tokens, and the others are computed by the same code. Where compiling
    fails, the layers are computed as they were.

    Args:
        encoder: of the model that is trained.
        asked: `torch_compile` of the arguments: None to compile where it pays, True wherever it can be, False never.
    """

    def __init__(self, encoder: nn.Module, asked: bool | None) -> None:
        self._encoder: Any = encoder
        self._asked = asked
        self._compiled = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Compiles what the first step will compute."""
        wanted = state.max_steps >= WORTH_STEPS if self._asked is None else self._asked
        if not wanted or not can_compile(self._encoder, args):
            return
        import torch._dynamo

        torch._dynamo.config.suppress_errors = True
        for layer in self._encoder.encoder.layer:
            layer.compile(dynamic=True)
        self._compiled = True
        logger.info("the encoder's layers are compiled, which the first step waits for")

    @contextmanager
    def as_written(self) -> Iterator[None]:
        """Computes the layers as they are written for a block, as those of every other model that is scored."""
        with torch.compiler.set_stance("force_eager") if self._compiled else nullcontext():
            yield


def can_compile(encoder: Any, training: TrainingArguments) -> bool:
    """Returns whether an encoder's layers can be compiled as they are trained.

    They need texts end to end in 16 bits, whose attention is one operator that is known to be compiled right, and what
    Triton needs. A training with `full_determinism` draws its dropout as FlagEmbedding does, which no compiled one can.
    """
    dtype = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None
    if dtype is None or training.full_determinism or not attends_text_by_text(encoder):
        return False
    deepspeed = getattr(training, "hf_deepspeed_config", None)
    if deepspeed is not None and deepspeed.is_zero3():
        return False
    size = encoder.config.hidden_size // encoder.config.num_attention_heads
    return kernel_of(training.device, dtype, size) is flash and _has_triton()


def _has_triton() -> bool:
    compilers = (os.environ.get("CC"), "gcc", "clang")
    return find_spec("triton") is not None and any(name and shutil.which(name) for name in compilers)
