"""An exported model in the libraries that will use it: does it embed as it did in training?

The three ways to embed are independent of each other: our own encoder, which scored the trials; FlagEmbedding's
`BGEM3FlagModel`; sentence-transformers. FlagEmbedding's inference class is imported here and nowhere else.
"""

import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from trainables.scoring.checkpoint import load_parts
from trainables.scoring.encoding import Encoder, evaluation_mode, tokenise
from trainables.scoring.settings import EncodingSettings

LEAST_AGREEMENT = 0.9999
"""What a library's vectors must exceed; rounding alone leaves them above 0.999999."""

LARGEST_DIFFERENCE = 1e-4
"""What a colbert score may differ by, or its size's share of it where it is larger than 1."""

Vectors = dict[str, list[npt.NDArray[np.float32]]]
"""Head -> a flat vector for each text: dense (size,), sparse (vocabulary,), colbert (tokens * size,)."""


class EmbeddingsDifferError(RuntimeError):
    """A library does not embed as training did."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A few texts to embed."""

    queries: Sequence[str]
    passages: Sequence[str]


def check_bundle(
    bundle: Path,
    checkpoint: Path,
    settings: EncodingSettings,
    sample: Sample,
    *,
    multi_vector: Path | None = None,
    trust_remote_code: bool = False,
) -> dict[str, float]:
    """Compares what both libraries make of a bundle with what training's encoder makes of the checkpoint.

    On the CPU in float32, all heads that the checkpoint has; sentence-transformers' own class of the dense head cuts
    `encode` at one length for queries and passages, which has to be the longer of training's.

    Args:
        bundle: The exported folder.
        checkpoint: The folder that the trial wrote.
        settings: How the trial's model was scored.
        sample: What to embed.
        multi_vector: The folder of the bundle that ``MultiVectorEncoder`` opens, if there is one; it is compared with
            FlagEmbedding, vectors and scores.
        trust_remote_code: As in training.

    Returns:
        ``<library> <head>`` -> the least agreement over the texts: the cosine, less what lengths differ by.

    Raises:
        EmbeddingsDifferError: An agreement is `LEAST_AGREEMENT` or less, a score differs by more than
            `LARGEST_DIFFERENCE`, or texts are cut elsewhere.
    """
    with quiet():
        expected = training_vectors(checkpoint, settings, sample, trust_remote_code=trust_remote_code)
        heads = {**expected, "colbert": []} if multi_vector else expected
        flag = flag_vectors(bundle, settings, sample, tuple(heads), trust_remote_code=trust_remote_code)
        agreements = _agreements("FlagEmbedding", flag, expected)
        sentence = sentence_vectors(bundle, settings, sample, trust_remote_code=trust_remote_code)
        agreements |= _agreements("sentence-transformers", sentence, expected)
        if multi_vector:
            tokens = token_vectors(multi_vector, settings, sample, trust_remote_code=trust_remote_code)
            agreements |= _agreements("sentence-transformers", {"colbert": tokens.flat}, flag)
    _require_agreement(agreements)
    if multi_vector:
        _require_equal_scores(tokens, flag["colbert"])
    return agreements


def _require_agreement(agreements: Mapping[str, float]) -> None:
    if differing := {name: value for name, value in agreements.items() if not value > LEAST_AGREEMENT}:
        values = ", ".join(f"{name} {value:.6f}" for name, value in differing.items())
        raise EmbeddingsDifferError(
            f"an exported model must embed as it did in training (agreement > {LEAST_AGREEMENT}), but got {values}: "
            "the installed library pools, truncates or normalises otherwise; nothing was exported"
        )


def _require_equal_scores(tokens: "TokenVectors", flag: Sequence[npt.NDArray[np.float32]]) -> None:
    if not (largest := largest_difference(tokens, flag)) <= LARGEST_DIFFERENCE:
        raise EmbeddingsDifferError(
            f"sentence-transformers' colbert scores must differ from FlagEmbedding's by {LARGEST_DIFFERENCE} at most, "
            f"but one differs by {largest:.6f}; nothing was exported"
        )


def _agreements(library: str, found: Vectors, expected: Vectors) -> dict[str, float]:
    """Of the heads that both have."""
    heads = [head for head in found if head in expected]
    return {f"{library} {head}": min(map(agreement, found[head], expected[head])) for head in heads}


def agreement(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Returns 1 - |a - b|^2 / (2 |a| |b|): the cosine for vectors of one length, less than it for others."""
    if one.shape != other.shape:
        return 0.0
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    distance = float(np.sum((one - other) ** 2))
    return 1.0 - distance / (2 * lengths) if lengths else float(distance == 0.0)


def training_vectors(
    checkpoint: Path, settings: EncodingSettings, sample: Sample, *, trust_remote_code: bool
) -> Vectors:
    """Embeds as the scorer of trials does."""
    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), trust_remote_code=trust_remote_code)
    model = load_parts(checkpoint, trust_remote_code)
    heads = ("dense",) if model.sparse_linear is None else ("dense", "sparse", "colbert")
    encoder = Encoder(model, tokenizer, settings, heads)
    vectors: Vectors = {head: [] for head in heads}
    with evaluation_mode(model):
        for texts, longest in instructed(settings, sample):
            for text in texts:
                embedded = encoder.encode(tokenise(tokenizer, [text], longest), np.array([0]))
                for head, value in _flat(embedded, len(tokenizer)).items():
                    vectors[head].append(value)
    return vectors


def flag_vectors(
    bundle: Path, settings: EncodingSettings, sample: Sample, heads: Sequence[str], *, trust_remote_code: bool
) -> Vectors:
    """Embeds with FlagEmbedding's `BGEM3FlagModel`."""
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(
        str(bundle),
        normalize_embeddings=settings.normalize_embeddings,
        use_fp16=False,
        devices="cpu",
        pooling_method=settings.sentence_pooling_method,
        query_instruction_for_retrieval=settings.query_instruction_for_retrieval,
        query_instruction_format=settings.query_instruction_format,
        passage_instruction_for_retrieval=settings.passage_instruction_for_retrieval,
        passage_instruction_format=settings.passage_instruction_format,
        trust_remote_code=trust_remote_code,
    )
    wanted = {"return_dense": True, "return_sparse": "sparse" in heads, "return_colbert_vecs": "colbert" in heads}
    parts = (
        model.encode_queries(list(sample.queries), max_length=settings.query_max_len, **wanted),
        model.encode_corpus(list(sample.passages), max_length=settings.passage_max_len, **wanted),
    )
    size = len(model.tokenizer)
    vectors: Vectors = {"dense": [vector for part in parts for vector in part["dense_vecs"]]}
    if "sparse" in heads:
        vectors["sparse"] = [_of_weights(weights, size) for part in parts for weights in part["lexical_weights"]]
    if "colbert" in heads:
        vectors["colbert"] = [value.reshape(-1) for part in parts for value in part["colbert_vecs"]]
    return vectors


def sentence_vectors(bundle: Path, settings: EncodingSettings, sample: Sample, *, trust_remote_code: bool) -> Vectors:
    """Embeds with sentence-transformers, at the bundle's own lengths, with its own prompts as far as it has them.

    Raises:
        EmbeddingsDifferError: The bundle's own lengths are not those of `settings`.
    """
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(bundle), device="cpu", trust_remote_code=trust_remote_code)
    vectors: list[npt.NDArray[np.float32]] = []
    encoders = ((model.encode_query, "query"), (model.encode_document, "document"))
    for (texts, longest), (encode, name) in zip(instructed(settings, sample), encoders, strict=True):
        _check_length(model, name, longest, " ".join([*sample.passages, "text"]))
        prompt = model.prompts[name] or ""
        vectors += list(encode([text.removeprefix(prompt) for text in texts], show_progress_bar=False))
    return {"dense": vectors}


@dataclass(frozen=True, kw_only=True)
class TokenVectors:
    """What ``MultiVectorEncoder`` makes of a sample."""

    vectors: Sequence[torch.Tensor]
    """Of the queries, then of the passages, each (tokens, size)."""
    scores: torch.Tensor
    """(queries, passages)"""

    @property
    def flat(self) -> list[npt.NDArray[np.float32]]:
        """As `Vectors` have them."""
        return [vectors.reshape(-1).numpy() for vectors in self.vectors]


def token_vectors(folder: Path, settings: EncodingSettings, sample: Sample, *, trust_remote_code: bool) -> TokenVectors:
    """Embeds and scores with sentence-transformers' ``MultiVectorEncoder``; arguments as for `sentence_vectors`."""
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(folder), device="cpu", trust_remote_code=trust_remote_code)
    encoders = ((model.encode_query, "query"), (model.encode_document, "document"))
    found: list[list[torch.Tensor]] = []
    for (texts, longest), (encode, name) in zip(instructed(settings, sample), encoders, strict=True):
        _check_length(model, name, longest, " ".join([*sample.passages, "text"]))
        prompt = model.prompts[name] or ""
        found.append(list(encode([text.removeprefix(prompt) for text in texts], show_progress_bar=False)))
    queries, passages = found
    return TokenVectors(vectors=[*queries, *passages], scores=model.similarity(queries, passages))


def largest_difference(tokens: TokenVectors, flag: Sequence[npt.NDArray[np.float32]]) -> float:
    """Returns how far scores are from FlagEmbedding's of its own flat vectors `flag`, in shares of scores above 1."""
    from FlagEmbedding import BGEM3FlagModel

    size, queries = tokens.vectors[0].shape[1], len(tokens.scores)
    vectors = [vector.reshape(-1, size) for vector in flag]
    score = BGEM3FlagModel.colbert_score  # takes nothing of the model
    theirs = [[float(score(None, query, passage)) for passage in vectors[queries:]] for query in vectors[:queries]]
    expected = torch.tensor(theirs)
    return float(((tokens.scores - expected).abs() / expected.abs().clamp(min=1)).max())


def _check_length(model: Any, task: str, longest: int, text: str) -> None:
    """Compares tokens, not vectors: a text of thousands of tokens takes long to embed."""
    while len(tokenise(model.tokenizer, [text], longest + 1).ids) <= longest:
        text += f" {text}"
    expected = tokenise(model.tokenizer, [text], longest).ids
    found = model.preprocess([text], task=task)["input_ids"][0].numpy()
    if not np.array_equal(expected, found):
        raise EmbeddingsDifferError(
            f"an exported model must cut a long {task} after {longest} tokens, as in training, but "
            f"sentence-transformers cuts it after {len(found)}, or elsewhere; nothing was exported"
        )


def instructed(settings: EncodingSettings, sample: Sample) -> list[tuple[list[str], int]]:
    """Returns the queries and the passages with their instructions, each with the tokens that they are cut after."""
    queries = [settings.query_text(query) for query in sample.queries]
    passages = [settings.passage_text(passage) for passage in sample.passages]
    return [(queries, settings.query_max_len), (passages, settings.passage_max_len)]


def _flat(embedded: Any, vocabulary: int) -> dict[str, npt.NDArray[np.float32]]:
    """Returns the vectors of the only text in `embedded`."""
    vectors = {"dense": embedded.dense[0].numpy()}
    if embedded.weights is not None:
        pairs = zip(embedded.ids[0].tolist(), embedded.weights[0].tolist(), strict=True)
        vectors["sparse"] = _of_weights(_largest(pairs), vocabulary)
    if embedded.vectors is not None:
        vectors["colbert"] = embedded.vectors[0].reshape(-1).numpy()
    return vectors


def _largest(pairs: Iterator[tuple[int, float]]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for token, weight in pairs:
        weights[str(token)] = max(weight, weights.get(str(token), 0.0))
    return weights


def _of_weights(weights: Mapping[str, float], vocabulary: int) -> npt.NDArray[np.float32]:
    vector = np.zeros(vocabulary, dtype=np.float32)
    for token, weight in weights.items():
        vector[int(token)] = weight
    return vector


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and log lines of the libraries, and without what they leave in memory."""
    had_bars, before = transformers_logging.is_progress_bar_enabled(), logging.root.manager.disable
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        if had_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        gc.collect()
