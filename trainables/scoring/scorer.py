"""Full-corpus, exact retrieval scores of a model: dense, sparse, colbert and hybrid.

Passages are encoded in batches and scored at once against all queries; only each query's best 100 are kept, so memory
does not grow with queries x corpus. Rankings and measures are those of trec_eval, and so of mteb.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from trainables.failures import NonFiniteScore
from trainables.scoring.corpus import Corpus
from trainables.scoring.encoding import EmbeddingModel, Encoder, Tokens, evaluation_mode, to_device, tokenise
from trainables.scoring.frozen import HiddenStates
from trainables.scoring.heldout import Qrels, read_qrels, read_queries
from trainables.scoring.measures import DEPTH, Scores
from trainables.scoring.metric import HEADS, score_name
from trainables.scoring.pool import Pool
from trainables.scoring.ranking import Matcher, TopK, sort_keys
from trainables.scoring.settings import EncodingSettings
from trainables.tally import TALLY

__all__ = [
    "HYBRID_CANDIDATES",
    "HYBRID_WEIGHTS",
    "TUNED",
    "EncodingSettings",
    "HybridWeights",
    "Scorer",
    "Scores",
]

_SCORES_AT_ONCE = 2**22
"""Elements of the largest matrix of scores that is held (float32: 16 MiB)."""


class HybridWeights(NamedTuple):
    """Weights of the three scores in the hybrid one, which is their weighted mean."""

    dense: float
    sparse: float
    colbert: float


HYBRID_WEIGHTS = HybridWeights(dense=1.0, sparse=1.0, colbert=1.0)
"""What ``BGEM3FlagModel.compute_score`` takes where it is given no weights; the ensemble is trained with 1, 0.3, 1."""

HYBRID_CANDIDATES = [
    HYBRID_WEIGHTS,
    *(
        HybridWeights(dense=1.0, sparse=sparse, colbert=colbert)
        for sparse in (0.0, 0.1, 0.3, 0.6, 1.0)
        for colbert in (0.0, 0.3, 1.0, 3.0)
        if (sparse, colbert) != HYBRID_WEIGHTS[1:]
    ),
]
"""What is tried on dev; the default comes first, and stays where no others are better."""

TUNED = "hybrid_tuned"
"""The head of the hybrid score with weights tuned on dev."""


@dataclass(frozen=True)
class _Queries:
    """The queries of one split."""

    ids: list[str]
    tokens: Tokens
    qrels: Qrels


class Scorer:
    """Scores models on one held-out set; the corpus is tokenised at most once, when the scorer is made.

    Under ``torch.distributed`` every rank must call `score` (each encodes its share of the corpus), and every rank
    gets the same scores.

    Args:
        eval_data: a BEIR folder.
        tokenizer: the model's tokenizer, a transformers one.
        settings: lengths, instructions, pooling; the same as in training.
        corpus: the folder's passages, tokenised. None: they are read and tokenised here.
    """

    def __init__(
        self, eval_data: Path, tokenizer: Any, settings: EncodingSettings, corpus: Corpus | None = None
    ) -> None:
        self._folder = Path(eval_data)
        self._tokenizer = tokenizer
        self._settings = settings
        self._corpus = corpus or Corpus.read(self._folder, tokenizer, settings)
        self._parts: dict[str, Corpus] = {}
        self._queries: dict[str, _Queries] = {}
        self._hidden: dict[tuple[str, torch.dtype], HiddenStates] = {}

    def score(
        self,
        model: EmbeddingModel,
        split: str,
        heads: Sequence[str] | None = None,
        hybrid_weights: HybridWeights = HYBRID_WEIGHTS,
        tuned_weights: HybridWeights | None = None,
        frozen_encoder: str | None = None,
        pool: Pool | None = None,
    ) -> Scores:
        """Rank the corpus for every query of a split and measure the rankings.

        Args:
            model: stays on its device, and in the mode (training or not) it is in.
            split: ``dev`` or ``test``.
            heads: some of `HEADS`; None for all that the model has.
            hybrid_weights: what the hybrid score is made of.
            tuned_weights: a second hybrid score, under the head `TUNED`.
            frozen_encoder: identifies the model's encoder where training leaves it as it is: it encodes each text for
                the first model that has it, and not for those that follow.
            pool: the passages that are ranked; None for the whole corpus.

        Raises:
            ValueError: a head is unknown or the model does not have it, or the split does not exist.
            NonFiniteScore: an embedding is NaN or infinite.
        """
        rankings = self.rankings(model, split, heads, hybrid_weights, tuned_weights, frozen_encoder, pool)
        return Scores.of(split, rankings, self.qrels(split))

    def rankings(
        self,
        model: EmbeddingModel,
        split: str,
        heads: Sequence[str] | None = None,
        hybrid_weights: HybridWeights = HYBRID_WEIGHTS,
        tuned_weights: HybridWeights | None = None,
        frozen_encoder: str | None = None,
        pool: Pool | None = None,
    ) -> dict[str, dict[str, list[str]]]:
        """Return head -> query id -> ids of the best `DEPTH` passages, best first; arguments as for `score`."""
        heads = _checked_heads(model, heads)
        mixtures = {head: hybrid_weights if head == "hybrid" else _only(head) for head in heads}
        if tuned_weights is not None:
            mixtures[TUNED] = tuned_weights
        queries = self._queries_of(split)
        with evaluation_mode(model):
            return self._rank(model, queries, mixtures, self._kept_states(model, frozen_encoder), self._part(pool))

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the passages, in ascending order."""
        return self._corpus.ids

    def qrels(self, split: str) -> Qrels:
        """Return the judgements of a split."""
        return self._queries_of(split).qrels

    def _part(self, pool: Pool | None) -> Corpus:
        if pool is None:
            return self._corpus
        if pool.hash not in self._parts:
            self._parts[pool.hash] = self._corpus.part(pool)
        return self._parts[pool.hash]

    def _encoder(self, *args: Any) -> Encoder:
        return Encoder(*args)

    def _kept_states(self, model: EmbeddingModel, frozen_encoder: str | None) -> HiddenStates | None:
        if frozen_encoder is None:
            return None
        dtype = next(model.model.parameters()).dtype
        return self._hidden.setdefault((frozen_encoder, dtype), HiddenStates())

    def tune_hybrid_weights(
        self, model: EmbeddingModel, split: str, measure: str, candidates: Iterable[HybridWeights]
    ) -> HybridWeights:
        """Return the candidate with the best hybrid ``measure`` on a split, the first of equals; one pass for all.

        Raises:
            ValueError: the model lacks a head.
            NonFiniteScore: an embedding is NaN or infinite.
        """
        _checked_heads(model, ["hybrid"])
        mixtures = {repr(tuple(weights)): weights for weights in candidates}
        queries = self._queries_of(split)
        with evaluation_mode(model):
            rankings = self._rank(model, queries, mixtures)
        means = Scores.of(split, rankings, queries.qrels).means
        return mixtures[max(mixtures, key=lambda name: means[score_name(name, measure)])]

    def _queries_of(self, split: str) -> _Queries:
        if split not in self._queries:
            qrels = read_qrels(self._folder, split)
            texts = read_queries(self._folder, qrels)
            instructed = [self._settings.query_text(text) for text in texts.values()]
            tokens = tokenise(self._tokenizer, instructed, self._settings.query_max_len)
            self._queries[split] = _Queries(list(texts), tokens, qrels)
        return self._queries[split]

    def _rank(
        self,
        model: EmbeddingModel,
        queries: _Queries,
        mixtures: Mapping[str, HybridWeights],
        hidden: HiddenStates | None = None,
        corpus: Corpus | None = None,
    ) -> dict[str, dict[str, list[str]]]:
        """Return mixture -> query id -> the best passages, for several mixtures of the three scores at once."""
        heads = [head for head in HybridWeights._fields if any(getattr(mix, head) for mix in mixtures.values())]
        corpus = corpus or self._corpus
        encoder = self._encoder(model, self._tokenizer, self._settings, heads, hidden)
        batches = queries.tokens.batches(encoder.batch_tokens // 8)
        encoded = (part for batch in batches for part in encoder.encoded(queries.tokens, batch, lambda found: found))
        matcher = Matcher(encoded, len(queries.ids), heads)
        best = {name: TopK(len(queries.ids), DEPTH, encoder.device) for name in mixtures}
        finite = torch.ones((), dtype=torch.int32, device=encoder.device)
        with TALLY.counting("embedded", len(corpus.positions)):
            for scores, positions in _scored(corpus, encoder, matcher):
                for name, weights in mixtures.items():
                    mixed = _mixed(scores, weights)
                    finite *= mixed.isfinite().all()
                    best[name].add(sort_keys(mixed, positions))
        _gather(best, finite)
        if not finite:
            raise NonFiniteScore("scores must be finite, but an embedding is NaN or infinite: the training diverged")
        return {name: dict(zip(queries.ids, top.passages(self._corpus.ids), strict=True)) for name, top in best.items()}


def _scored(corpus: Corpus, encoder: Encoder, matcher: Matcher) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yield head -> scores (queries, passages) and the passages' positions, for this rank's share of the corpus."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)
    parts: list[dict[str, Tensor]] = []
    passages: list[npt.NDArray[np.int64]] = []
    for batch in islice(corpus.tokens.batches(encoder.batch_tokens), rank, None, world):
        for scores, texts in encoder.encoded(corpus.tokens, batch, matcher.scores):
            parts.append(scores)
            passages.append(texts)
            TALLY.add(len(texts) * world)
        if sum(map(len, passages)) * matcher.queries >= _SCORES_AT_ONCE:
            yield _joined(corpus, parts, passages, encoder.device)
            parts, passages = [], []
    if parts:
        yield _joined(corpus, parts, passages, encoder.device)


def _joined(
    corpus: Corpus, parts: list[dict[str, Tensor]], passages: list[npt.NDArray[np.int64]], device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    scores = {head: torch.cat([part[head] for part in parts], dim=1) for head in parts[0]}
    return scores, to_device(corpus.positions[torch.from_numpy(np.concatenate(passages))], device)


def _checked_heads(model: EmbeddingModel, heads: Sequence[str] | None) -> Sequence[str]:
    trained = model.sparse_linear is not None and model.colbert_linear is not None
    available = HEADS if trained else HEADS[:1]
    if heads is None:
        return available
    for head in heads:
        if head not in HEADS:
            raise ValueError(f"a head must be one of {', '.join(HEADS)}, but got {head!r}")
        if head not in available:
            raise ValueError(f"the model has no {head} head: train it with unified_finetuning, or score dense only")
    return heads


def _only(head: str) -> HybridWeights:
    return HybridWeights(*(float(head == name) for name in HybridWeights._fields))


def _mixed(scores: Mapping[str, Tensor], weights: HybridWeights) -> Tensor:
    """Return the weighted mean of the scores, as FlagEmbedding's ``BGEM3FlagModel.compute_score`` mixes them."""
    used = [(scores[head], weight) for head, weight in weights._asdict().items() if weight]
    if len(used) == 1:
        return used[0][0]
    return torch.stack([score * weight for score, weight in used]).sum(dim=0) / sum(weights)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _gather(best: Mapping[str, TopK], finite: Tensor) -> None:
    """Make every rank's best passages, and whether all scores were finite, those of all ranks together."""
    if not _distributed() or dist.get_world_size() == 1:
        return
    dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    for top in best.values():
        of_rank = [torch.empty_like(top.keys) for _ in range(dist.get_world_size())]
        dist.all_gather(of_rank, top.keys)
        top.add(torch.cat([keys for rank, keys in enumerate(of_rank) if rank != dist.get_rank()], dim=1))
