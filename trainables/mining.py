"""Passages near to queries, found by sentence-transformers' `mine_hard_negatives`, and a cross-encoder's scores.

What a model has computed is kept in a file as it comes, so that a search for negatives that was killed goes on.
"""

import hashlib
import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import sentence_transformers
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from tqdm import tqdm

from trainables.files import files_in
from trainables.positions import positions_of

CHUNK = 256
"""Texts that are embedded, and kept, at a time: a kill loses no more."""

BLOCK = 4096
"""Queries for which candidates are in memory at a time."""

_SIMILARITIES = 256
"""Queries whose similarities to the whole corpus are in memory at a time."""

Floats = npt.NDArray[np.float32]


class UnusableError(ValueError):
    """A folder holds no model of the kind that is needed, or a file nothing that was kept; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query and all the passages known to answer it."""

    text: str
    positives: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What lies near to a query, its positives left out."""

    positives: Sequence[float]
    """Score of each positive."""
    passages: Sequence[tuple[str, float]]
    """Passages and their scores, the highest first."""


class _Store:
    """Arrays under keys in one SQLite file; each is there as a whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with self._open() as database:
                database.execute("CREATE TABLE IF NOT EXISTS arrays (key BLOB PRIMARY KEY, value BLOB)")
                database.commit()
        except sqlite3.Error as error:
            raise UnusableError(f"{path}: what an earlier mine kept cannot be read ({error}); remove it") from error

    def get(self, key: Sequence[Any], compute: Callable[[], Any]) -> Floats:
        """Returns the flat array under `key`, computed where it is not there yet."""
        name = hashlib.sha256(repr(tuple(key)).encode()).digest()
        with self._open() as database:
            found = database.execute("SELECT value FROM arrays WHERE key = ?", (name,)).fetchone()
            if found:
                return np.frombuffer(found[0], dtype=np.float32)
            values = np.asarray(compute(), dtype=np.float32).ravel()
            database.execute("INSERT OR REPLACE INTO arrays VALUES (?, ?)", (name, values.tobytes()))
            database.commit()
        return values

    def _open(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(self._path))


class Miner:
    """Finds candidates by a model's embeddings, and scores them by a teacher's opinion where there is one.

    Args:
        model: Folder of a model that sentence-transformers opens.
        teacher: Folder of a cross-encoder with one output, or None.
        store: The file that keeps embeddings and the teacher's scores.
        batch_size: Texts, or pairs, of a batch.
        query_prompt: Stands before every query.
        corpus_prompt: Stands before every passage.
        max_seq_length: Tokens that are read of a text; None: as many as the model says.

    Raises:
        UnusableError: A folder holds no such model, or `store` is another file.
    """

    def __init__(
        self,
        model: str,
        teacher: str | None,
        store: Path,
        *,
        batch_size: int,
        query_prompt: str | None,
        corpus_prompt: str | None,
        max_seq_length: int | None,
    ) -> None:
        encoder = _opened(SentenceTransformer, model)
        cross_encoder = _opened(CrossEncoder, teacher) if teacher else None
        if cross_encoder is not None and cross_encoder.num_labels != 1:
            raise UnusableError(
                f"{teacher}: a teacher gives a pair one score, but this one gives {cross_encoder.num_labels}"
            )
        if max_seq_length:
            encoder.max_seq_length = min(max_seq_length, encoder.max_seq_length or max_seq_length)
        kept = _Store(store)
        told = (*_identity(model), str(encoder.device), encoder.max_seq_length)
        self._encoder, self._teacher = _KeptEncoder(encoder, kept, told), None
        if teacher and cross_encoder is not None:
            told = (*_identity(teacher), str(cross_encoder.device))
            self._teacher = _KeptTeacher(cross_encoder, kept, told)
        self._batch_size, self._query_prompt, self._corpus_prompt = batch_size, query_prompt, corpus_prompt

    def embed(self, passages: Sequence[str]) -> None:
        """Embeds all the passages that `candidates` and `scores` will meet."""
        self._encoder.embed(passages, batch_size=self._batch_size, prompt=self._corpus_prompt)

    def candidates(self, queries: Sequence[Query], corpus: Sequence[str], count: int) -> Iterator[Candidates]:
        """Yields for each query the passages nearest to it, of `corpus` and of the positives of queries beside it.

        Args:
            queries: Different texts.
            corpus: Different passages.
            count: How many, from 1; a query has fewer where there are not so many.
        """
        from sentence_transformers.util import mine_hard_negatives

        for start in range(0, len(queries), BLOCK):
            block = queries[start : start + BLOCK]
            found = mine_hard_negatives(
                _pairs(block),
                cast(SentenceTransformer, self._encoder),
                corpus=list(corpus),
                cross_encoder=cast(CrossEncoder, self._teacher),
                range_max=count,
                min_score=-float("inf"),  # removes nothing; without a rule the teacher would not be asked
                num_negatives=count,
                output_format="labeled-list",
                output_scores=True,
                batch_size=self._batch_size,
                faiss_batch_size=_SIMILARITIES,
                verbose=False,
                query_prompt=self._query_prompt,
                corpus_prompt=self._corpus_prompt,
            )
            yield from _by_query(block, found)

    def scores(self, queries: Sequence[str], passages: Sequence[Sequence[str]]) -> Iterator[list[float]]:
        """Yields the scores of each query's passages, on the scale of `candidates`."""
        if self._teacher:
            yield from self._judged(queries, passages, self._teacher.activation_fn)
            return
        asked = self._encoder.encode_query(
            list(queries), batch_size=self._batch_size, normalize_embeddings=True, prompt=self._query_prompt
        )
        for query, own in zip(asked, passages, strict=True):
            embedded = torch.as_tensor(self._encoder.encode_document(own))
            yield self._encoder.similarity(torch.as_tensor(query), embedded)[0].tolist()

    def labels(self, queries: Sequence[str], passages: Sequence[Sequence[str]]) -> Iterator[list[float]]:
        """Yields the teacher's scores of each query's passages before any activation, as FlagEmbedding learns them."""
        return self._judged(queries, passages, torch.nn.Identity())

    def _judged(
        self, queries: Sequence[str], passages: Sequence[Sequence[str]], activation: Any
    ) -> Iterator[list[float]]:
        assert self._teacher
        for query, own in tqdm(zip(queries, passages, strict=True), "scoring rows", len(queries), mininterval=1):
            pairs = [(query, passage) for passage in own]
            yield self._teacher.predict(pairs, batch_size=self._batch_size, activation_fn=activation).tolist()


class _KeptEncoder:
    """A `SentenceTransformer` whose embeddings are kept; `mine_hard_negatives` takes it for one."""

    def __init__(self, model: SentenceTransformer, store: _Store, identity: tuple[Any, ...]) -> None:
        self._model, self._store, self._identity = model, store, identity
        self._places: dict[str, int] = {}
        self._vectors: Floats = np.empty((0, 0), dtype=np.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_query(self, inputs: list[str], **settings: Any) -> Floats:
        return self._encode("queries", self._model.encode_query, inputs, settings)

    def encode_document(self, inputs: Sequence[str], **_: Any) -> Floats:
        """Returns embeddings of passages that were embedded before."""
        return self._vectors[[self._places[text] for text in inputs]]

    def embed(self, passages: Sequence[str], **settings: Any) -> None:
        settings |= {"normalize_embeddings": True}
        self._places = {text: place for place, text in enumerate(passages)}
        self._vectors = self._encode("passages", self._model.encode_document, list(passages), settings)

    def _encode(self, kind: str, encode: Callable[..., Any], texts: list[str], settings: Mapping[str, Any]) -> Floats:
        prompt, batch_size = settings.get("prompt"), settings["batch_size"]
        by_length = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        vectors: Floats = np.empty((len(texts), self._model.get_embedding_dimension() or 0), dtype=np.float32)
        with tqdm(total=len(texts), desc=f"embedding {kind}", mininterval=1) as bar:
            for start in range(0, len(texts), CHUNK):
                places = by_length[start : start + CHUNK]
                chunk = [texts[place] for place in places]

                def compute(chunk: list[str] = chunk) -> Any:
                    return encode(chunk, **{**settings, "show_progress_bar": False})

                key = (*self._identity, kind, prompt, batch_size, chunk)
                vectors[places] = self._store.get(key, compute).reshape(len(chunk), -1)
                bar.update(len(chunk))
        return vectors


class _KeptTeacher:
    """A `CrossEncoder` whose scores are kept; `mine_hard_negatives` takes it for one."""

    def __init__(self, model: CrossEncoder, store: _Store, identity: tuple[Any, ...]) -> None:
        self._model, self._store, self._identity = model, store, identity
        self.activation_fn = model.activation_fn

    def predict(self, inputs: list[tuple[str, str]], *, convert_to_tensor: bool = False, **settings: Any) -> Any:
        kept = (str(settings.get("activation_fn", self.activation_fn)), settings.get("batch_size"))
        scores = self._store.get((*self._identity, *kept, inputs), lambda: self._model.predict(inputs, **settings))
        return torch.tensor(scores) if convert_to_tensor else scores


def _opened(kind: type[Any], folder: str) -> Any:
    try:
        model = kind(folder, local_files_only=True, model_kwargs={"dtype": torch.float32})  # whatever it is stored in
    except (OSError, ValueError, KeyError, ImportError) as error:
        said = " ".join(str(error).split())
        raise UnusableError(f"{folder}: sentence-transformers cannot open it as a {kind.__name__}: {said}") from error
    return _within_positions(model, Path(folder))


def _within_positions(model: Any, folder: Path) -> Any:
    """Some tokenizers know no limit, and RoBERTa's tables have fewer positions than their config says."""
    positions = positions_of(folder) if (folder / "config.json").is_file() else None
    if positions is not None and positions < (model.max_seq_length or math.inf):
        model.max_seq_length = positions
    return model


def _identity(folder: str) -> tuple[Any, ...]:
    """What tells a model from others without reading its weights, and the library's version."""
    root = Path(folder).resolve()
    files = [(name, (root / name).stat()) for name in sorted(files_in(root))]
    return sentence_transformers.__version__, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]


def _pairs(queries: Sequence[Query]) -> Any:
    from datasets import Dataset

    pairs = [(query.text, positive) for query in queries for positive in query.positives]
    return Dataset.from_dict({"query": [text for text, _ in pairs], "positive": [passage for _, passage in pairs]})


def _by_query(queries: Sequence[Query], found: Any) -> Iterator[Candidates]:
    """The library gives a list for each pair of a query and a positive, none where there is no candidate."""
    scores: dict[str, list[float]] = {}
    passages: dict[str, list[tuple[str, float]]] = {}
    for row in found:
        positive, *others = row["scores"]
        scores.setdefault(row["query"], []).append(positive)
        passages.setdefault(row["query"], list(zip(row["positive"][1:], others, strict=True)))
    for query in queries:
        yield Candidates(positives=scores.get(query.text, ()), passages=passages.get(query.text, ()))
