"""How many passages a query is told apart from in a training step, and how that stays the same on other machines.

The contrastive loss depends on it: workers, batch and group are parts of the objective, not of the machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuner.errors import RequestError, counted
from tuner.request.arguments import upstream_arguments

BATCH, GROUP, CROSS = "per_device_train_batch_size", "train_group_size", "negatives_cross_device"
ACCUMULATION, UNIFIED = "gradient_accumulation_steps", "unified_finetuning"
CLIPPING, TEACHER, TEACHERS_LOSS = "max_grad_norm", "knowledge_distillation", "kd_loss_type"


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """The sizes that make up a training step."""

    workers: int
    batch: int
    """Queries of one worker."""
    group: int
    """Passages of one query: a positive and negatives of its own."""
    cross_device: bool
    """Workers share their passages, for the dense head."""
    accumulation: int
    unified: bool
    """The sparse and ColBERT heads are trained too; they see the passages of their own worker only."""
    clipping: float
    """The norm that a gradient is cut to."""
    distilled: bool
    """A teacher's scores are learnt by a loss of each worker's own, beside the one that workers share."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any], workers: int) -> "Negatives":
        """Reads them off FlagEmbedding's arguments."""
        values = {
            name: arguments.get(name, upstream_arguments()[name].default)
            for name in (BATCH, GROUP, CROSS, ACCUMULATION, UNIFIED, CLIPPING, TEACHER, TEACHERS_LOSS)
        }
        return cls(
            workers=workers,
            batch=int(values[BATCH]),
            group=int(values[GROUP]),
            cross_device=bool(values[CROSS]) and workers > 1,
            accumulation=int(values[ACCUMULATION]),
            unified=bool(values[UNIFIED]),
            clipping=float(values[CLIPPING]),
            distilled=bool(values[TEACHER]) and values[TEACHERS_LOSS] == "kl_div",
        )

    @property
    def sharing(self) -> int:
        """Workers whose passages a query sees."""
        return self.workers if self.cross_device else 1

    @property
    def per_query(self) -> int:
        """Passages that a query's positive has to beat, for the dense head."""
        return self.sharing * self.batch * self.group - 1

    def __str__(self) -> str:
        factors = f"{self.batch} rows x {self.group} passages"
        if self.cross_device:
            factors = f"{self.workers} workers x {factors}"
        local = f" ({self.batch * self.group - 1} for the sparse and ColBERT heads)" if self._heads_see_less else ""
        return f"{self.per_query} negatives a query: {factors}, less its positive{local}"

    @property
    def _heads_see_less(self) -> bool:
        return self.unified and self.cross_device

    def on(self, workers: int) -> dict[str, Any]:
        """Returns the arguments that change on another number of workers, so that the step computes the same.

        The loss that workers share gives each the gradient of its own passages alone, and they take the mean: the
        gradient of N workers is an Nth of one worker's. AdamW does not mind, clipping does: its norm shrinks as much.

        Raises:
            RequestError: No batch size and no accumulation would do that.
        """
        if workers == self.workers:
            return {}
        micro_batches = self.workers * self.accumulation
        if not self.cross_device and micro_batches % workers == 0:
            return {ACCUMULATION: micro_batches // workers, CROSS: False}
        queries = self.sharing * self.batch
        scales = self.workers == self.sharing and not self.unified and not self.distilled
        if scales and queries % workers == 0:
            clipping = self.clipping * self.sharing / workers
            return {BATCH: queries // workers, CROSS: workers > 1, CLIPPING: clipping}
        raise RequestError([self._refusal(workers, queries)])

    def _refusal(self, workers: int, queries: int) -> str:
        asked = f"--gpus {workers}: the winner was trained with {self}, on {counted(self.workers, 'worker')}, and"
        if self.unified:
            why = "the sparse and ColBERT heads see one worker's passages, which change with the batch of a worker"
        elif self.distilled:
            why = f"--{TEACHERS_LOSS} kl_div weighs more beside a loss that more workers share"
        elif self.workers != self.sharing:
            why = f"{self.workers} x {self.accumulation} batches a step cannot be divided by {workers}"
        else:
            why = f"{queries} queries a step cannot be divided by {workers}"
        return f"{asked} {why}: on {workers} it would be another model; search on {workers} GPUs a trial instead"
