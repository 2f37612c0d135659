"""Trains only the rows of a token embedding that the training data can reach.

A row that no training text contains has no gradient, and Adam without weight decay then leaves it as it is. So it needs
neither gradient nor optimizer state, nor a place on the device: with 250,002 tokens that is most of them.

The distinct tokens of a batch are looked up once, and groups of its texts encoded from them one after the other. With
sub-batches each group is an activation checkpoint: exact gradients of a large batch in the memory of a small one
(GradCache, Gao et al. 2021, arXiv:2101.06983). torch repeats dropout masks and autocast, and DistributedDataParallel,
DeepSpeed and gradient scaling see one ordinary backward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

Result = TypeVar("Result")


class ReachableEmbedding(nn.Module):
    """Some rows of an embedding, addressed by the token ids of the whole one.

    Args:
        whole: where the rows are copied from.
        tokens: ids of the rows, distinct.
    """

    def __init__(self, whole: nn.Embedding, tokens: Tensor) -> None:
        super().__init__()
        rows_in_reach = whole.weight.detach()[tokens].clone()
        self.weight = nn.Parameter(rows_in_reach, requires_grad=whole.weight.requires_grad)
        self.tokens = tokens
        rows = torch.full((whole.num_embeddings,), -1)
        rows[tokens] = torch.arange(len(tokens))
        self.register_buffer("rows", rows, persistent=False)
        self._padding = None if whole.padding_idx is None else int(rows[whole.padding_idx])

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the embeddings of token ids of any shape."""
        assert isinstance(self.rows, Tensor)
        return F.embedding(self.rows[tokens], self.weight, padding_idx=self._padding)


class Vocabulary:
    """Keeps an encoder's embedding to the tokens in reach while it trains, and whole while it is scored or saved.

    Args:
        encoder: its embedding is exchanged at once.
        tokens: every token id that training can come across, padding included.
    """

    def __init__(self, encoder: PreTrainedModel, tokens: npt.NDArray[np.int64]) -> None:
        whole = encoder.get_input_embeddings()
        assert isinstance(whole, nn.Embedding)
        self._encoder = encoder
        self._whole = whole
        self._reachable = ReachableEmbedding(whole, torch.from_numpy(tokens))
        encoder.set_input_embeddings(self._reachable)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Puts the whole embedding, with the rows as they are now, into the encoder for a block."""
        rows = self._reachable.weight.detach()
        whole = self._whole.to(dtype=rows.dtype)
        with torch.no_grad():
            whole.weight[self._reachable.tokens] = rows.cpu()
        self._encoder.set_input_embeddings(whole.to(rows.device))
        try:
            yield
        finally:
            self._encoder.set_input_embeddings(self._reachable)
            self._whole.to("cpu")


def plain_embedding(encoder: PreTrainedModel) -> nn.Module | None:
    """Returns the encoder's token embedding if all it does is look rows up."""
    embedding: nn.Module = encoder.get_input_embeddings()
    if isinstance(embedding, ReachableEmbedding):
        return embedding
    plain = type(embedding) is nn.Embedding and embedding.max_norm is None and not embedding.scale_grad_by_freq
    return embedding if plain else None


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
