"""A training step that computes the same on another number of GPUs, or is refused."""

from typing import Any

import pytest
import torch
from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Model
from torch import Tensor

from tuner.errors import RequestError
from tuner.export.negatives import Negatives


def _step(workers: int, *, batch: int = 16, group: int = 4, **others: Any) -> Negatives:
    arguments = {"per_device_train_batch_size": batch, "train_group_size": group, **others}
    return Negatives.of(arguments, workers)


def test_negatives_are_counted() -> None:
    assert _step(1).per_query == 16 * 4 - 1
    assert _step(2).per_query == 16 * 4 - 1
    assert _step(2, negatives_cross_device=True).per_query == 2 * 16 * 4 - 1
    assert _step(1, negatives_cross_device=True).per_query == 16 * 4 - 1  # there is nobody to share with


def test_they_are_said() -> None:
    assert str(_step(1)) == "63 negatives a query: 16 rows x 4 passages, less its positive"
    unified = _step(2, negatives_cross_device=True, unified_finetuning=True)
    assert str(unified) == (
        "127 negatives a query: 2 workers x 16 rows x 4 passages, less its positive "
        "(63 for the sparse and ColBERT heads)"
    )


@pytest.mark.parametrize(
    ("step", "workers", "changes"),
    [
        (_step(1), 1, {}),
        (_step(1), 4, {"per_device_train_batch_size": 4, "negatives_cross_device": True, "max_grad_norm": 0.25}),
        (
            _step(2, negatives_cross_device=True),
            1,
            {"per_device_train_batch_size": 32, "negatives_cross_device": False, "max_grad_norm": 2.0},
        ),
        (
            _step(2, negatives_cross_device=True, max_grad_norm=2.0),
            8,
            {"per_device_train_batch_size": 4, "negatives_cross_device": True, "max_grad_norm": 0.5},
        ),
        (
            _step(1, max_grad_norm=0),  # no clipping
            2,
            {"per_device_train_batch_size": 8, "negatives_cross_device": True, "max_grad_norm": 0},
        ),
        (_step(4), 1, {"gradient_accumulation_steps": 4, "negatives_cross_device": False}),
        (
            _step(1, knowledge_distillation=True, kd_loss_type="m3_kd_loss"),
            2,
            {"per_device_train_batch_size": 8, "negatives_cross_device": True, "max_grad_norm": 0.5},
        ),
        (_step(4), 2, {"gradient_accumulation_steps": 2, "negatives_cross_device": False}),
        (
            _step(1, gradient_accumulation_steps=8),
            4,
            {"gradient_accumulation_steps": 2, "negatives_cross_device": False},
        ),
        (
            _step(1, gradient_accumulation_steps=8, negatives_cross_device=True),
            4,
            {"gradient_accumulation_steps": 2, "negatives_cross_device": False},
        ),
        (
            _step(1, gradient_accumulation_steps=8, unified_finetuning=True),
            4,
            {"gradient_accumulation_steps": 2, "negatives_cross_device": False},
        ),
    ],
)
def test_another_number_of_workers_computes_the_same(step: Negatives, workers: int, changes: dict[str, Any]) -> None:
    assert step.on(workers) == changes
    arguments = {
        "per_device_train_batch_size": step.batch,
        "train_group_size": step.group,
        "negatives_cross_device": step.cross_device,
        "gradient_accumulation_steps": step.accumulation,
        **changes,
    }
    there = Negatives.of(arguments, workers)
    assert there.per_query == step.per_query
    assert there.workers * there.batch * there.accumulation == step.workers * step.batch * step.accumulation


@pytest.mark.parametrize(
    ("step", "workers", "why"),
    [
        (_step(1), 3, "16 queries a step cannot be divided by 3"),
        (_step(2), 4, "2 x 1 batches a step cannot be divided by 4"),
        (_step(1, unified_finetuning=True), 2, "heads see one worker's passages"),
        (_step(1, knowledge_distillation=True), 2, "--kd_loss_type kl_div weighs more"),  # kl_div is upstream's default
        (_step(2, negatives_cross_device=True, unified_finetuning=True), 1, "heads see one worker's passages"),
    ],
)
def test_what_would_be_another_model_is_refused(step: Negatives, workers: int, why: str) -> None:
    with pytest.raises(RequestError, match=why) as refused:
        step.on(workers)
    assert f"--gpus {workers}" in str(refused.value)


class _Worker(EncoderOnlyEmbedderM3Model):  # type: ignore[misc]
    """FlagEmbedding's dense loss of one worker among others, which are in this process."""

    def __init__(self, rank: int, others: dict[int, list[Tensor]]) -> None:
        torch.nn.Module.__init__(self)
        self.rank, self.others = rank, others
        self.temperature, self.cross_entropy = 0.05, torch.nn.CrossEntropyLoss()

    def _dist_gather_tensor(self, own: Tensor) -> Tensor:
        everyone = self.others[len(own)]
        return torch.cat([own if rank == self.rank else other for rank, other in enumerate(everyone)])


def _gradient(weight: Tensor, queries: Tensor, passages: Tensor, workers: int) -> Tensor:
    """The mean of the workers' gradients, as DistributedDataParallel makes it."""
    own = weight.clone().requires_grad_()
    embedded = [torch.nn.functional.normalize(rows @ own, dim=-1) for rows in (queries, passages)]
    parts = [rows.chunk(workers) for rows in embedded]
    others = {len(part[0]): [one.detach() for one in part] for part in parts}
    losses = []
    for rank, (q, p) in enumerate(zip(*parts, strict=True)):
        worker = _Worker(rank, others)
        compute = worker._compute_cross_device_neg_loss if workers > 1 else worker._compute_in_batch_neg_loss
        losses.append(compute(q, p, compute_score_func=worker.compute_dense_score)[1])
    return torch.autograd.grad(sum(losses, start=torch.zeros(())) / workers, own)[0]


@pytest.mark.parametrize("workers", [2, 4])
def test_clipping_shrinks_as_the_gradient_of_shared_negatives_does(workers: int) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, queries, passages = (
        torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((6, 5), (8, 6), (24, 6))
    )
    alone, shared = (_gradient(weight, queries, passages, count) for count in (1, workers))
    there = _step(1, batch=8, group=3).on(workers)["max_grad_norm"]
    torch.testing.assert_close(shared, alone * there)  # its share of max_grad_norm 1.0, so that clipping binds alike
