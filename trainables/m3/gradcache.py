"""Exact gradients of a large batch in the memory of a small one (GradCache, Gao et al. 2021, arXiv:2101.06983).

A contrastive loss needs the representations of the whole batch, but not their activations: each sub-batch is encoded
once without keeping them, and again when its turn comes in the backward pass. That is activation checkpointing with a
sub-batch as the unit, so torch does it: dropout masks and autocast are repeated, and DistributedDataParallel,
DeepSpeed and gradient scaling see one ordinary backward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from trainables.m3.embedding import plain_embedding

Result = TypeVar("Result")


def encode_groups(
    encode: Callable[[dict[str, Any], Tensor | None], Result],
    groups: Sequence[dict[str, Any]],
    table: Tensor | None,
    cached: bool,
) -> list[Result]:
    """Encodes groups of texts one after the other.

    Args:
        encode: one group's representations, from its tensors and `table`.
        groups: see `Layout.batch`.
        table: embeddings of the batch's distinct tokens, (tokens, size).
        cached: keep representations only; each group's activations are computed again in the backward pass.
    """
    if not cached:
        return [encode(group, table) for group in groups]
    return [checkpoint(encode, group, table, use_reentrant=False) for group in groups]


def token_table(encoder: PreTrainedModel, tokens: Tensor) -> Tensor | None:
    """Looks the distinct tokens of a batch up once, so that the large embedding gets one gradient and not one a group.

    Returns:
        (tokens, size), or None for an embedding that does more than look up.
    """
    embedding = plain_embedding(encoder)
    return None if embedding is None else embedding(tokens)


@contextmanager
def embedded_from(encoder: PreTrainedModel, table: Tensor | None, places: Tensor) -> Iterator[None]:
    """Lets the encoder's input embedding take a block's tokens from `table` (at `places`) and not from its weight."""
    if table is None:
        yield
        return
    embedding = encoder.get_input_embeddings()
    embedding.forward = lambda _: F.embedding(places, table)
    try:
        yield
    finally:
        del embedding.forward
