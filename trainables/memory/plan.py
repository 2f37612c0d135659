"""The fastest way to compute a step in the memory that there is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainables.memory.shape import Shape, Texts
from trainables.memory.step import memory, positive


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """How a step is computed: each way gives the same gradients."""

    sub_batch_size: int | None
    """Texts whose activations are held at once; None: all."""
    checkpointing: bool
    """Whether layers' activations are computed again."""
    bytes: float
    """That the device has to have, by `memory`."""
    smallest: bool
    """No other way takes less."""

    def __str__(self) -> str:
        at_once = "all texts at once" if self.sub_batch_size is None else f"{self.sub_batch_size} texts at once"
        again = ", layers computed again" if self.checkpointing else ""
        return f"a step takes about {self.bytes / 1e9:.1f} GB: {at_once}{again}"


def plan_step(limit: float, shape: Shape, arguments: Mapping[str, Any], *, texts: Texts, **known: Any) -> StepPlan:
    """Returns the fastest way to compute a step that takes fewer than `limit` bytes of the device, or the smallest.

    Everything at once, then with layers computed again where `arguments` allow it by ``gradient_checkpointing``, then
    in sub-batches, of which ``sub_batch_size`` of the arguments is the largest. Both ways take one more forward pass,
    but sub-batches are smaller products.

    Args:
        limit: bytes.
        shape: of the model.
        arguments: of a trial, by FlagEmbedding's and transformers' names.
        texts: of the longest batch.
        known: the other arguments of `memory`.
    """
    plans = []
    for sub_batch_size, checkpointing in _ways(arguments, texts):
        known |= {"texts": texts, "sub_batch_size": sub_batch_size, "checkpointing": checkpointing}
        takes = memory(shape, arguments, **known).on_device
        plan = StepPlan(sub_batch_size=sub_batch_size, checkpointing=checkpointing, bytes=takes, smallest=False)
        if takes < limit:
            return plan
        plans.append(plan)
    return replace(min(plans, key=lambda plan: plan.bytes), smallest=True)


def _ways(arguments: Mapping[str, Any], texts: Texts) -> Iterator[tuple[int | None, bool]]:
    """Yields ways to compute a step, the larger ones first; sub-batches of one number are of one size."""
    most = positive(arguments.get("sub_batch_size"))
    if most is None or most >= texts.count:
        yield None, False
        if arguments.get("gradient_checkpointing") and not arguments.get("fix_encoder"):  # which keeps nothing
            yield None, True
    sizes = {-(-texts.count // number) for number in range(2, texts.count + 1)}
    for size in sorted({min(size, most or size) for size in sizes}, reverse=True):
        yield size, False
