"""Sizes of a model, and of the texts that go through it at once."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainables.config import DEFAULT_LENGTHS

_SPREAD = 4.0
"""Standard deviations by which the texts of the longest batch are longer together than those of a mean one."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of an encoder with its heads, in transformers' words."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    vocab_size: int
    parameters: int
    """Of the encoder and its heads."""
    colbert_dim: int

    @classmethod
    def of(cls, config: Any, *, parameters: int | None = None, colbert_dim: int = -1) -> "Shape":
        """Reads the sizes from a transformers configuration, or from an object with the same attributes.

        Args:
            config: has ``hidden_size``, ``intermediate_size``, ``num_hidden_layers``, ``vocab_size`` and
                ``max_position_embeddings``.
            parameters: None: counted as XLM-R's are.
            colbert_dim: of FlagEmbedding's arguments; -1 for the hidden size.
        """
        size, wide = int(config.hidden_size), int(config.intermediate_size)
        dim = colbert_dim if colbert_dim > 0 else size
        shape = cls(
            hidden_size=size,
            intermediate_size=wide,
            num_hidden_layers=int(config.num_hidden_layers),
            vocab_size=int(config.vocab_size),
            parameters=parameters or 0,
            colbert_dim=dim,
        )
        if parameters is not None:
            return shape
        layers = shape.matrices + shape.num_hidden_layers * (9 * size + wide)
        embeddings = (shape.vocab_size + int(config.max_position_embeddings) + 3) * size
        return replace(shape, parameters=layers + embeddings + (size + 1) * (dim + 1))

    @classmethod
    def read(cls, model: Path, **known: Any) -> "Shape":
        """Reads the sizes from the ``config.json`` of a model's folder; `known` as for `of`."""
        values = json.loads((model / "config.json").read_text(encoding="utf-8"))
        return cls.of(type("Config", (), values), **known)

    @property
    def matrices(self) -> int:
        """Weights of the layers' products: those that autocast copies."""
        return self.num_hidden_layers * (4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size)

    def adapters(self, rank: int) -> int:
        """Returns the weights of adapters of that rank (LoRA) on all of the layers' products."""
        return self.num_hidden_layers * rank * (10 * self.hidden_size + 2 * self.intermediate_size)

    def wide(self, factors: tuple[int, int]) -> int:
        """Returns bytes of a token in a layer."""
        return factors[0] * self.hidden_size + factors[1] * self.intermediate_size


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How many tokens texts have, or rows with the texts that go with them."""

    mean: float
    deviation: float
    longest: int

    def of_longest(self, count: int) -> float:
        """Returns the tokens that `count` of them are likely to have at most, together."""
        return min(count * self.longest, count * self.mean + _SPREAD * self.deviation * math.sqrt(count))


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts that go through the encoder for one backward pass, on one worker."""

    queries: int
    passages: int
    query_length: int
    """Of the longest query, in tokens."""
    passage_length: int
    """Of the longest passage."""
    tokens: int
    """Of all texts together: as many as the encoder goes through, so with padding where it is not packed."""

    @classmethod
    def longest(cls, arguments: Mapping[str, Any]) -> "Texts":
        """Returns a batch in which every text is as long as it may be; `arguments` by FlagEmbedding's names."""
        queries = int(arguments.get("per_device_train_batch_size") or 8)
        passages = queries * int(arguments.get("train_group_size") or 8)
        query, passage = (int(arguments.get(name) or default) for name, default in DEFAULT_LENGTHS.items())
        return cls(
            queries=queries,
            passages=passages,
            query_length=query,
            passage_length=passage,
            tokens=queries * query + passages * passage,
        )

    @classmethod
    def likely(
        cls,
        arguments: Mapping[str, Any],
        queries: "Lengths",
        passages: "Lengths",
        sources: Iterable[tuple[int, "Lengths"]] = (),
    ) -> "Texts":
        """Returns the longest batch that a training is likely to draw, packed.

        A row's passages may be alike in length, some may go with many rows, and a batch may be of one source.

        Args:
            arguments: by FlagEmbedding's names.
            queries: of those that may be drawn, cut to the longest that is allowed.
            passages: of passages.
            sources: for each source of batches, how many of its rows make one, and how long these are with their
                groups.
        """
        most = cls.longest(arguments)
        tokens = queries.of_longest(most.queries) + passages.of_longest(most.passages)
        tokens = max(tokens, *(rows.of_longest(count) for count, rows in sources), 0)
        return cls(
            queries=most.queries,
            passages=most.passages,
            query_length=queries.longest,
            passage_length=passages.longest,
            tokens=min(most.tokens, int(tokens)),
        )

    @property
    def count(self) -> int:
        """Queries and passages."""
        return self.queries + self.passages

    @property
    def padded_length(self) -> int:
        """Places of a text among the token vectors."""
        return max(self.query_length, self.passage_length)

    def at_once(self, sub_batch_size: int | None) -> int:
        """Returns the tokens whose activations are held together."""
        return min(self.tokens, sub_batch_size * self.padded_length) if sub_batch_size else self.tokens
