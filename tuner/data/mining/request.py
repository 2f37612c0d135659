"""What a search for negatives is asked for, and what it tells of the rows."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainables.config import DEFAULT_MODEL, DEFAULT_SEED
from tuner.data.mining.rule import Rule
from tuner.data.sources import JSON_SUFFIXES


@dataclass(frozen=True, kw_only=True)
class Mining:
    """What is asked for."""

    rows: str
    """A file or folder of rows, with or without negatives; what `--train_data` takes."""
    to: Path
    """The JSON Lines file to write."""
    corpus: str | None = None
    """A BEIR folder whose passages may become negatives, beside those of the rows."""
    eval_data: str | None = None
    """The BEIR folder of the search to come. None: it will hold out queries of the rows."""
    model: str = DEFAULT_MODEL
    teacher: str | None = None
    """A cross-encoder, which scores candidates and the rows that are written."""
    rule: Rule = field(default_factory=Rule)
    query_prompt: str | None = None
    corpus_prompt: str | None = None
    batch_size: int = 32
    max_seq_length: int | None = None
    """Tokens that are read of a text. None: as many as the model says."""
    seed: int = DEFAULT_SEED
    """That of the search to come, which holds out other queries for another one."""

    @property
    def store(self) -> Path:
        """Where embeddings and scores are kept; hidden, so that nobody reads it as data."""
        return self.to.with_name(f".{self.to.name}.mining")

    def problems(self) -> list[str]:
        """Returns one line for each part that is wrong in itself."""
        checks = [
            (self.to.suffix in JSON_SUFFIXES, f"--to {self.to}: must end in {', '.join(JSON_SUFFIXES)}"),
            (self.to.parent.is_dir(), f"--to {self.to}: there is no folder {self.to.parent}; make it first"),
            (not os.path.lexists(self.to), f"--to {self.to}: is there already; remove it, or name another file"),
            (self.batch_size >= 1, f"--batch_size must be 1 or more, but got {self.batch_size}"),
            (
                self.max_seq_length is None or self.max_seq_length >= 2,
                f"--max_seq_length must be 2 or more, but got {self.max_seq_length}",
            ),
        ]
        return [message for holds, message in checks if not holds] + self.rule.problems()


@dataclass(kw_only=True)
class Mined:
    """What has become of the rows."""

    rows: int = 0
    kept_rows: int = 0
    """Rows that keep negatives of their own."""
    mined_rows: int = 0
    own: int = 0
    """Negatives that rows came with."""
    own_removed: int = 0
    """Of these, positives, of dev and test queries too, or too near to their own query's."""
    negatives: int = 0
    """Negatives that are written."""
    removed: int = 0
    """Candidates that were too near to a positive."""
    removed_rows: int = 0
    """Rows that had such."""
    held_out: int = 0
    """Passages that are left out as positives of dev or test queries."""
    drawn: int = 0
    """Negatives drawn at random, where too few candidates were left."""
    drawn_rows: int = 0
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        """Yields what a person reads."""
        yield (
            f"{self.rows:,} rows, {self.negatives:,} negatives: {self.kept_rows:,} rows kept their own, "
            f"{self.mined_rows:,} got new ones"
        )
        if self.own:
            removed = f"removed {self.own_removed:,} of {self.own:,} negatives that rows came with"
            yield f"{removed}, as near as a positive, or a positive of a dev or test query"
        yield f"removed {self.removed:,} candidates of {self.removed_rows:,} rows, as near as a positive"
        yield f"left out {self.held_out:,} passages that are positives of dev or test queries"
        if self.drawn:
            yield f"drew {self.drawn:,} negatives of {self.drawn_rows:,} rows at random: too few candidates were left"
