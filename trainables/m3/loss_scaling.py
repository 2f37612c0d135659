"""What a loss scaler does to a training in 16-bit floats: which steps it skips, and when that leads nowhere.

Under one, a loss or gradient that is not finite ends nothing: the step is skipped, the scale falls, training goes on.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

SKIPPED_FOR_GOOD = 40
"""Steps skipped in a row after which no scale helps. float16 has 40 powers of two, from 2^-24 to 2^15: a scale that is
halved as often has taken what overflowed at the top down to what is rounded to 0, and nothing between was right.
PyTorch's scaler starts at 2^16 and knows no lower end; DeepSpeed's goes from FlagEmbedding's 2^12 to 1 in 12 steps, and
there ZeRO gives up, while the other optimizers skip on."""

_AT_ITS_MINIMUM = "loss scale already at minimum"
"""What DeepSpeed's ZeRO raises (`DynamicLossScaler.update_scale`), as a plain `Exception`."""


class LossScaling(TrainerCallback):
    """Counts a trainer's skipped steps on its device, so that nobody has to wait for it.

    Accelerate's own `optimizer_step_was_skipped` does not know: a fused optimizer skips on the device.

    Args:
        trainer: is to have this callback.

    Attributes:
        skipped: (), optimizer steps skipped in a row up to now.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.skipped = torch.zeros((), dtype=torch.int64, device=trainer.args.device)
        self._scale = torch.ones(())

    @property
    def is_on(self) -> bool:
        """Whether losses are scaled: in float16, by PyTorch's scaler or DeepSpeed's."""
        if self._trainer.is_deepspeed_enabled:
            return bool(self._engine.fp16_enabled())
        return self._trainer.accelerator.scaler is not None

    @property
    def _engine(self) -> Any:
        """DeepSpeed's."""
        return self._trainer.model_wrapped

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Keeps the scale that the gradients were scaled by."""
        if not self._trainer.is_deepspeed_enabled and self.is_on:
            self._scale = self._now().clone()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Counts the step, if it was skipped."""
        if self.is_on:
            self.skipped = (self.skipped + 1) * self._was_skipped()

    def _was_skipped(self) -> Tensor | bool:
        if self._trainer.is_deepspeed_enabled:
            return bool(self._engine.optimizer.overflow)  # it has asked the device itself
        return (self._now() < self._scale) | (self._scale == 0)  # a scale of 0 falls no further

    def _now(self) -> Tensor:
        scale: Tensor = self._trainer.accelerator.scaler._scale  # `get_scale` would wait for the device
        return scale


def gives_up(error: Exception) -> bool:
    """Returns whether an exception is DeepSpeed's at the lowest loss scale that its settings allow."""
    return _AT_ITS_MINIMUM in str(error)
