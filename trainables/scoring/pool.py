"""A pool of passages that stands for a large corpus while trials are compared, made as MTEB's HardNegatives tasks are.

It holds every judged passage, the base model's best for each query, and a random fill. The base model scores the same
on the pool as on the corpus: the best `DEPTH` passages of each query are all in it. A trained model can score higher,
because passages that it alone would rank high may be missing; so pool scores are compared with pool scores only.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from trainables.files import write_text


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Passages of a corpus."""

    passages: Sequence[str]
    """Their ids, in ascending order."""
    corpus: int
    """How many passages the corpus has."""

    @cached_property
    def text(self) -> str:
        """What its file holds."""
        return json.dumps({"corpus": self.corpus, "passages": list(self.passages)}, ensure_ascii=False)

    @property
    def hash(self) -> str:
        """SHA-256 of its file."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Writes its file."""
        write_text(path, self.text)

    @classmethod
    def read(cls, path: Path, expected: str) -> Pool:
        """Reads a file of the hash `expected`.

        Raises:
            ValueError: It is another one, or not there.
        """
        if file_hash(path) != expected:
            raise ValueError(f"{path} must hold the pool that the base model was scored with, but it does not")
        return cls(**json.loads(path.read_text("utf-8")))


def file_hash(path: Path) -> str:
    """Returns the hash of a pool's file; nothing where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def draw_pool(
    ids: Sequence[str],
    judged: Iterable[str],
    rankings: Iterable[Mapping[str, Sequence[str]]],
    *,
    size: int,
    seed: int,
) -> Pool | None:
    """Returns a pool of at least `size` passages; None where it would be the whole corpus.

    Args:
        ids: Of the corpus, in ascending order.
        judged: Ids of the judged passages.
        rankings: For each head that counts, query id -> the base model's best passages.
        size: With fewer judged and best passages, as many others are drawn as are missing.
        seed: Draws them.
    """
    needed = {*judged, *(passage for of_query in rankings for ranking in of_query.values() for passage in ranking)}
    places = np.sort([place_of(ids, passage) for passage in needed])
    others = np.setdiff1d(np.arange(len(ids)), places)
    missing = min(len(others), max(0, size - len(places)))
    drawn = np.random.default_rng(seed).choice(others, size=missing, replace=False)
    chosen = np.sort(np.concatenate([places, drawn])).astype(int)
    if len(chosen) == len(ids):
        return None
    return Pool(passages=[ids[place] for place in chosen.tolist()], corpus=len(ids))


def place_of(ids: Sequence[str], passage: str) -> int:
    """Returns where a passage is among `ids`, which are in ascending order.

    Raises:
        ValueError: It is not there.
    """
    place = bisect_left(ids, passage)
    if place == len(ids) or ids[place] != passage:
        raise ValueError(f"the corpus has no passage {passage!r}, which is judged or in the pool")
    return place
