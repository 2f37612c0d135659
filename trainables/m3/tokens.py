"""Texts of upstream's training datasets and their token ids, made once and mapped into memory by all who need them."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from trainables.files import new_folder, sha256

Ids = npt.NDArray[np.int32]
"""Token ids of one text, special tokens included, not padded."""

_BATCH = 4096


class Tokeniser:
    """Turns texts into token ids as FlagEmbedding's collator does: with special tokens, cut, not padded.

    Args:
        tokenizer: of transformers.
        max_length: tokens of a text at most, special tokens included.
        cache: known texts; others are tokenised when they come. None: no text is known.
    """

    def __init__(self, tokenizer: Any, max_length: int, cache: "TokenCache | None" = None) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self.cache = cache

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        """Returns the token ids of each text."""
        if self.cache is None:
            return self._tokenise(texts)
        known: list[Ids | None] = self.cache.get(texts)
        missing = iter(self._tokenise([text for text, ids in zip(texts, known, strict=True) if ids is None]))
        return [next(missing) if ids is None else ids for ids in known]

    def _tokenise(self, texts: Sequence[str]) -> list[Ids]:
        if not texts:
            return []
        rows = self._tokenizer(list(texts), truncation=True, max_length=self._max_length)["input_ids"]
        return [np.asarray(row, dtype=np.int32) for row in rows]

    def cached(self, folder: Path, source: str, texts: Iterable[str]) -> "Tokeniser":
        """Returns a tokeniser that knows `texts`; they are read and tokenised only if no process has done it yet.

        Args:
            folder: holds one cache for every combination of source, tokenizer and length.
            source: identifies the contents of `texts`.
            texts: repetitions do no harm.
        """
        parts = (source, fingerprint(self._tokenizer), str(self._max_length))
        path = folder / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                with new_folder(path) as new:
                    self._write(new, texts)
        return Tokeniser(self._tokenizer, self._max_length, TokenCache(path))

    def _write(self, folder: Path, texts: Iterable[str]) -> None:
        keys: list[bytes] = []
        rows: list[Ids] = []
        seen: set[bytes] = set()
        remaining = iter(texts)
        while batch := list(islice(remaining, _BATCH)):
            new = {key: text for text in batch if (key := _key(text)) not in seen}
            seen |= new.keys()
            keys += new.keys()
            rows += self._tokenise(list(new.values()))
        order = np.argsort(np.array(keys, dtype="S16"))
        rows = [rows[place] for place in order]
        np.save(folder / "keys.npy", np.array(keys, dtype="S16")[order])
        np.save(folder / "ends.npy", np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64))
        ids = np.concatenate(rows)
        np.save(folder / "ids.npy", ids)
        np.save(folder / "vocabulary.npy", np.unique(ids))


class TokenCache:
    """Token ids by a hash of their text, mapped from files and not read.

    Args:
        folder: holds ``keys.npy`` (sorted hashes), ``ends.npy``, ``ids.npy`` (the ids of all texts, end to end) and
            ``vocabulary.npy`` (the distinct ids).
    """

    def __init__(self, folder: Path) -> None:
        self._keys: npt.NDArray[np.bytes_] = np.load(folder / "keys.npy", mmap_mode="r")
        self._ends: npt.NDArray[np.int64] = np.load(folder / "ends.npy", mmap_mode="r")
        self._ids: Ids = np.load(folder / "ids.npy", mmap_mode="r")
        self.vocabulary: Ids = np.load(folder / "vocabulary.npy")

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, (texts,)."""
        return np.diff(self._ends)

    def get(self, texts: Sequence[str]) -> list[Ids | None]:
        """Returns each text's ids, None for one that is not known."""
        keys = np.array([_key(text) for text in texts], dtype="S16")
        places = np.searchsorted(self._keys, keys)
        known = [place < len(self._keys) and self._keys[place] == key for place, key in zip(places, keys, strict=True)]
        return [
            self._ids[self._ends[place] : self._ends[place + 1]] if found else None
            for place, found in zip(places, known, strict=True)
        ]


def _key(text: str) -> bytes:
    # numpy drops trailing zero bytes of a fixed-width string, on both sides of every comparison
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@lru_cache(maxsize=8)
def fingerprint(tokenizer: Any) -> str:
    """Returns a hash of what a tokenizer does; lengths that it was last called with do not matter."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hashlib.sha256(f"{tokenizer!r}{sorted(tokenizer.get_vocab().items())}".encode()).hexdigest()
    rules = json.loads(backend.to_str())
    rules.pop("truncation", None)
    rules.pop("padding", None)
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def content_hash(files: Iterable[str]) -> str:
    """Returns a hash of the contents of files, in their order."""
    return hashlib.sha256("".join(map(_file_hash, files)).encode()).hexdigest()


def _file_hash(file: str) -> str:
    state = Path(file).stat()
    return _hash_of(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash_of(file: str, _size: int, _changed: int) -> str:
    return sha256(Path(file))


@contextmanager
def sorted_folders() -> Iterator[None]:
    """Lets upstream's datasets read a folder's files by name: `os.listdir`'s order differs between machines."""
    listdir = os.listdir
    os.listdir = lambda path=".": sorted(listdir(path))  # type: ignore[assignment]
    try:
        yield
    finally:
        os.listdir = listdir


def texts_of(data: Any, seed: int) -> str:
    """Identifies the texts that a dataset with these data arguments gives; `seed` draws those that it leaves out."""
    given = [Path(path) for path in data.train_data]
    files = [str(file) for path in given for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    query = (data.query_instruction_for_retrieval, data.query_instruction_format)
    passage = (data.passage_instruction_for_retrieval, data.passage_instruction_format)
    left_out = (data.max_example_num_per_dataset, data.small_threshold, data.drop_threshold)
    drawn = None if data.max_example_num_per_dataset == type(data).max_example_num_per_dataset else seed
    return repr((content_hash(files), data.same_dataset_within_batch, query, passage, left_out, drawn))


def query_texts(dataset: Any) -> Iterator[str]:
    """Yields every query as the dataset gives it to the collator."""
    data = dataset.args
    instruction = data.query_instruction_for_retrieval
    plain = instruction is None and not data.same_dataset_within_batch
    for row in dataset.dataset:
        given = row.get("prompt", instruction)
        yield row["query"] if plain else data.query_instruction_format.format(given, row["query"])


def passage_texts(dataset: Any) -> Iterator[str]:
    """Yields every passage as the dataset gives it to the collator; those of symmetric tasks are not foreseen."""
    data = dataset.args
    instruction = data.passage_instruction_for_retrieval
    for row in dataset.dataset:
        for text in (*row["pos"], *row["neg"]):
            yield text if instruction is None else data.passage_instruction_format.format(instruction, text)


def check_rows(dataset: Any) -> None:
    """Refuses rows that upstream fails on in the middle of an epoch.

    Raises:
        ValueError: a row has no positive, or no negative although a group needs one.
    """
    for column in ("pos", "neg") if dataset.args.train_group_size > 1 else ("pos",):
        for row, texts in enumerate(dataset.dataset[column], start=1):
            if not texts:
                raise ValueError(f"every training row needs a text in `{column}`, but row {row} has none: add one")
