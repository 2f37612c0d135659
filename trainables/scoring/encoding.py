"""Texts to token ids to the three embeddings of a BGE-M3 model, with little padding and without gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from trainables.linear import fast_linear
from trainables.scoring.frozen import HiddenStates
from trainables.scoring.settings import EncodingSettings
from trainables.tally import TALLY
from trainables.varlen import attends_text_by_text, padding_position, positions, within_texts

_Made = TypeVar("_Made")


class EmbeddingModel(Protocol):
    """What is scored: the attributes of FlagEmbedding's ``EncoderOnlyEmbedderM3Model`` that are used here."""

    @property
    def model(self) -> nn.Module:
        """The encoder; its output has ``last_hidden_state``."""

    @property
    def colbert_linear(self) -> nn.Module | None:
        """The head of the token vectors, None for a model without."""

    @property
    def sparse_linear(self) -> nn.Module | None:
        """The head of the token weights, None for a model without."""


@dataclass(frozen=True)
class Tokens:
    """Token ids of many texts, end to end: 4 bytes a token, so that a million passages fit in memory."""

    ids: npt.NDArray[np.int32]
    """(tokens of all texts,)"""
    starts: npt.NDArray[np.int64]
    """(texts + 1,): where each text starts, and the end."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, shape (texts,)."""
        return np.diff(self.starts)

    def part(self, texts: npt.NDArray[np.int64]) -> Tokens:
        """Return a copy of the texts with these numbers."""
        lengths = self.lengths[texts]
        starts = np.append(0, np.cumsum(lengths))
        places = np.arange(starts[-1]) + np.repeat(self.starts[texts] - starts[:-1], lengths)
        return Tokens(self.ids[places], starts)

    def batches(self, batch_tokens: int) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the numbers of the texts to encode together: similar lengths, the longest first."""
        lengths = self.lengths
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            size = max(1, batch_tokens // int(lengths[order[start]]))
            yield order[start : start + size]
            start += size

    def padded(self, texts: npt.NDArray[np.int64], pad_id: int) -> tuple[Tensor, Tensor]:
        """Return input ids and attention mask of some texts, both int64 of shape (texts, longest of them)."""
        lengths = self.lengths[texts]
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, pad_id, dtype=np.int64)
        ids[mask] = np.concatenate([self.ids[self.starts[text] : self.starts[text + 1]] for text in texts])
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))

    def end_to_end(self, texts: npt.NDArray[np.int64], padding: int | None) -> tuple[dict[str, Tensor], Tensor]:
        """Return what an encoder takes of some texts end to end, and their tokens' places in (texts, longest).

        Args:
            texts: their numbers.
            padding: see `padding_position`.
        """
        lengths = self.lengths[texts]
        ends = np.cumsum(lengths)
        text = np.repeat(np.arange(len(texts)), lengths)
        offsets = np.arange(ends[-1]) - (ends - lengths)[text]
        ids = self.ids[self.starts[texts][text] + offsets].astype(np.int64)
        given = {
            "input_ids": torch.from_numpy(ids)[None],
            "position_ids": torch.from_numpy(positions(ids, offsets, (ends - lengths)[text], padding))[None],
            "cu_seqlens": torch.from_numpy(np.append(0, ends).astype(np.int32)),
        }
        return given, torch.from_numpy(text * lengths.max() + offsets)


def tokenise(tokenizer: Any, texts: Iterable[str], max_length: int) -> Tokens:
    """Tokenise texts as FlagEmbedding's collator does: special tokens added, cut to ``max_length``, not padded."""
    remaining = iter(texts)
    parts: list[npt.NDArray[np.int32]] = []
    lengths: list[int] = [0]
    while batch := list(islice(remaining, 4096)):
        rows = tokenizer(batch, truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
        parts.append(np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]))
        lengths.extend(len(row) for row in rows)
        TALLY.add(len(rows))
    return Tokens(ids=np.concatenate(parts), starts=np.cumsum(lengths, dtype=np.int64))


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of a batch of texts, float32. What was not asked for is None."""

    ids: Tensor
    """Token ids, (texts, length)."""
    dense: Tensor | None
    """(texts, hidden size)"""
    weights: Tensor | None
    """Weight of each token for the sparse score, (texts, length); 0 for padding and special tokens."""
    vectors: Tensor | None
    """Token vectors for the colbert score, (texts, length - 1, size): all tokens but the first."""
    mask: Tensor
    """Which tokens are no padding, bool, (texts, length)."""


class Encoder:
    """Computes the embeddings of one model; each text goes through the encoder once for all heads.

    Args:
        model: stays on its device.
        tokenizer: the model's.
        settings: how texts become embeddings.
        heads: some of dense, sparse, colbert.
        hidden: where the hidden states of a frozen encoder are kept.
        packed: let the encoder take texts end to end. None: on a GPU, if it can; on a CPU the little padding that
            batches of similar lengths have costs less than attention text by text.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        tokenizer: Any,
        settings: EncodingSettings,
        heads: Iterable[str],
        hidden: HiddenStates | None = None,
        packed: bool | None = None,
    ) -> None:
        self._model = model
        self._hidden = hidden
        self._settings = settings
        self._heads = frozenset(heads)
        self.device = next(model.model.parameters()).device
        self.batch_tokens = settings.batch_tokens or (2048 if self.device.type == "cpu" else 16384)
        self._packed = self.device.type == "cuda" if packed is None else packed
        self._packed &= attends_text_by_text(model.model)
        self._fitting_tokens = math.inf
        """Of a batch, padding included; known once a larger one has run out of memory."""
        self._pad_id = int(tokenizer.pad_token_id)
        special = (tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
        self._unweighted = torch.tensor([token for token in special if token is not None], device=self.device)

    def encoded(
        self, tokens: Tokens, texts: npt.NDArray[np.int64], make: Callable[[Embeddings], _Made]
    ) -> Iterator[tuple[_Made, npt.NDArray[np.int64]]]:
        """Yield what ``make`` makes of the texts' embeddings, and of which texts.

        All at once, or in parts, half as large each time that memory runs out.

        Raises:
            torch.OutOfMemoryError: a single text does not fit.
        """
        longest = int(tokens.lengths[texts].max())
        while len(texts):
            part = texts[: int(max(1, min(len(texts), self._fitting_tokens // longest)))]
            try:
                made = make(self.encode(tokens, part))
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self._fitting_tokens = longest * len(part) / 2
            else:
                yield made, part
                texts = texts[len(part) :]

    def encode(self, tokens: Tokens, texts: npt.NDArray[np.int64]) -> Embeddings:
        """Embed the texts with these numbers."""
        ids, mask = (to_device(part, self.device) for part in tokens.padded(texts, self._pad_id))
        batch = (id(tokens), int(texts[0]), len(texts))
        dtype = getattr(torch, self._settings.precision)
        reduced = self.device.type == "cuda" and dtype != torch.float32
        with torch.autocast(self.device.type, dtype=dtype if reduced else None, enabled=reduced):
            hidden = self._last_hidden_states(batch, partial(self._encode, tokens, texts, ids, mask))
            weights = self._weights(hidden, ids) if "sparse" in self._heads else None
            vectors = self._vectors(hidden) if "colbert" in self._heads else None
        dense = self._normalised(pool(hidden.float(), mask, self._settings.sentence_pooling_method))
        return Embeddings(ids, dense if "dense" in self._heads else None, weights, vectors, mask.bool())

    def _last_hidden_states(self, batch: tuple[int, int, int], encode: Callable[[], Tensor]) -> Tensor:
        return encode() if self._hidden is None else to_device(self._hidden.of(batch, encode), self.device)

    def _encode(self, tokens: Tokens, texts: npt.NDArray[np.int64], ids: Tensor, mask: Tensor) -> Tensor:
        """Return last hidden states, (texts, length, size)."""
        if not self._packed:
            states: Tensor = self._model.model(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
            return states
        lengths = tokens.lengths[texts]
        given, cells = tokens.end_to_end(texts, padding_position(self._model.model))
        moved = {name: to_device(value, self.device) for name, value in given.items()}
        how = within_texts(self._model.model, moved.pop("cu_seqlens"), ids.shape[1], lengths)
        flat: Tensor = self._model.model(**moved, **how, return_dict=True).last_hidden_state[0]
        empty = flat.new_zeros(ids.numel(), flat.shape[1])
        return empty.index_copy_(0, to_device(cells, self.device), flat).view(*ids.shape, -1)

    def _weights(self, hidden: Tensor, ids: Tensor) -> Tensor:
        assert self._model.sparse_linear is not None
        weights = torch.relu(self._model.sparse_linear(hidden)).squeeze(-1).float()
        return weights.masked_fill(torch.isin(ids, self._unweighted), 0.0)

    def _vectors(self, hidden: Tensor) -> Tensor:
        assert self._model.colbert_linear is not None
        return self._normalised(self._model.colbert_linear(hidden[:, 1:]).float())

    def _normalised(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self._settings.normalize_embeddings else vectors


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return values on a device; the host does not wait for a GPU to have them."""
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def pool(hidden: Tensor, mask: Tensor, method: str) -> Tensor:
    """Return one vector per text from (texts, length, size) token vectors, as FlagEmbedding's M3 model does.

    Raises:
        ValueError: the method is none of cls, mean, last_token.
    """
    if method == "cls":
        return hidden[:, 0]
    if method == "mean":
        return (hidden * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    if method == "last_token":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
    raise ValueError(f"sentence_pooling_method must be one of cls, mean, last_token, but got {method!r}")


@contextmanager
def evaluation_mode(model: EmbeddingModel) -> Iterator[None]:
    """Switch dropout and gradients off and faster linear layers on; every module gets back the mode it was in."""
    heads = (model.model, model.colbert_linear, model.sparse_linear)
    training = [module for head in heads if head is not None for module in head.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode(), fast_linear(*heads):
            yield
    finally:
        for module in training:
            module.training = True
