"""Trains only the rows of a token embedding that the training data can reach.

A row that no training text contains has no gradient, and Adam without weight decay then leaves it as it is. So it needs
neither gradient nor optimizer state, nor a place on the device: with 250,002 tokens that is most of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import PreTrainedModel


class ReachableEmbedding(nn.Module):
    """Some rows of an embedding, addressed by the token ids of the whole one.

    Args:
        whole: where the rows are copied from.
        tokens: ids of the rows, distinct.
    """

    def __init__(self, whole: nn.Embedding, tokens: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(whole.weight.detach()[tokens].clone())
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
