"""The tokenised passages of a held-out set: made once in a search, and mapped into memory by every worker and trial."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from trainables.files import new_folder, sha256
from trainables.scoring.encoding import Tokens, tokenise
from trainables.scoring.heldout import read_passages
from trainables.scoring.pool import Pool, place_of
from trainables.scoring.settings import EncodingSettings
from trainables.tally import TALLY

_FILES = ("ids", "starts", "positions", "names", "name_ends")


class PassageIds(Sequence[str]):
    """Passage ids in ascending order, end to end as UTF-8: a million of them are no million Python strings.

    Args:
        names: bytes of all ids.
        ends: (passages,): where each one ends.
    """

    def __init__(self, names: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> None:
        self._names, self._ends = names, ends

    @classmethod
    def of(cls, ids: Sequence[str]) -> PassageIds:
        """Return `ids`, which are in ascending order, in this form."""
        encoded = [passage.encode() for passage in ids]
        names = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return cls(names, np.cumsum([len(name) for name in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        return self._names[start : int(self._ends[index])].tobytes().decode()

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What is written to files."""
        return {"names": self._names, "name_ends": self._ends}


@dataclass(frozen=True)
class Corpus:
    """Tokenised passages, in the order of ``corpus.jsonl``."""

    tokens: Tokens
    positions: Tensor
    """(passages,), int64: each passage's place in `ids`."""
    ids: Sequence[str]
    """The ids of the whole corpus in ascending order."""

    @classmethod
    def read(cls, folder: Path, tokenizer: Any, settings: EncodingSettings) -> Corpus:
        """Read and tokenise the passages of a BEIR folder."""
        names: list[str] = []

        def texts() -> Iterator[str]:
            for passage, text in read_passages(folder):
                names.append(passage)
                yield settings.passage_text(text)

        with TALLY.counting("tokenised"):
            tokens = tokenise(tokenizer, texts(), settings.passage_max_len)
        ordered = sorted(names)
        place = {passage: number for number, passage in enumerate(ordered)}
        return cls(tokens, torch.tensor([place[passage] for passage in names]), PassageIds.of(ordered))

    @classmethod
    def cached(cls, cache: Path, rules: str, folder: Path, tokenizer: Any, settings: EncodingSettings) -> Corpus:
        """Return the passages of a BEIR folder; they are read and tokenised only if no process has done it yet.

        Args:
            cache: holds one folder for every combination of corpus, tokenizer, length and instruction.
            rules: identifies what the tokenizer does.
            folder: the BEIR folder.
            tokenizer: the model's, a transformers one.
            settings: length and instruction of a passage.
        """
        path = cache / _key(folder / "corpus.jsonl", rules, settings)
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                made = cls.read(folder, tokenizer, settings)
                with new_folder(path) as new:
                    made._write(new)
        ids, starts, positions, names, ends = (
            np.asarray(np.load(path / f"{name}.npy", mmap_mode="r")) for name in _FILES
        )
        return cls(Tokens(ids, starts), torch.from_numpy(positions.copy()), PassageIds(names, ends))

    def part(self, pool: Pool) -> Corpus:
        """Return the passages of a pool, copied; their ids stay those of the whole corpus.

        Raises:
            ValueError: The pool has a passage that the corpus does not have.
        """
        places = [place_of(self.ids, passage) for passage in pool.passages]
        texts = np.flatnonzero(np.isin(self.positions.numpy(), places))
        return Corpus(self.tokens.part(texts), self.positions[torch.from_numpy(texts)], self.ids)

    def _write(self, folder: Path) -> None:
        arrays: dict[str, npt.NDArray[Any]] = {
            "ids": self.tokens.ids,
            "starts": self.tokens.starts,
            "positions": self.positions.numpy(),
        }
        assert isinstance(self.ids, PassageIds)
        for name, values in {**arrays, **self.ids.arrays}.items():
            np.save(folder / f"{name}.npy", values)


def _key(corpus: Path, rules: str, settings: EncodingSettings) -> str:
    """Return what a cache is called: the kinds of caches in the folder differ by their first part."""
    instruction = (settings.passage_instruction_for_retrieval, settings.passage_instruction_format)
    state = corpus.stat()
    content = _hash_of(corpus, state.st_size, state.st_mtime_ns)
    parts = ("corpus", content, rules, str(settings.passage_max_len), repr(instruction))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@lru_cache(maxsize=64)
def _hash_of(file: Path, _size: int, _changed: int) -> str:
    return sha256(file)
