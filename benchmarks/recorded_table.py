"""A table of fine-tuned retrievers: what many configurations of one task scored at five points of their training.

`benchmarks/record_table.py` makes the files ``benchmarks/recorded/TASK.npz``; this module only reads and writes them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FRACTIONS", "RecordedTable"]

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]

FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of a full run's training examples at which a run is scored."""

_OF_A_CONFIGURATION = ("learning_rate", "temperature", "train_group_size", "per_device_train_batch_size")
_OF_A_RUN = ("config", "seed", "budget", "schedule", "dev", "test")


@dataclass(frozen=True, kw_only=True)
class RecordedTable:
    """C configurations, R runs of them, F fractions, Qd queries of dev and Qt of test.

    Scores are nDCG@10 of the dense head on the whole corpus, one a query. They are NaN where a run did not reach a
    fraction: its budget ends before, or it diverged.
    """

    learning_rate: Floats
    """(C,)"""
    temperature: Floats
    """(C,)"""
    train_group_size: Integers
    """(C,); 1 means that a query has only the other queries' positives as negatives."""
    per_device_train_batch_size: Integers
    """(C,)"""
    config: Integers
    """(R,): the configuration that a run trained, 0 to C - 1."""
    seed: Integers
    """(R,)"""
    budget: Floats
    """(R,): share of a full run's examples that the run's learning-rate schedule spans; 1 for a full run."""
    schedule: npt.NDArray[np.str_]
    """(R,): ``lr_scheduler_type``, ``linear`` or ``constant_with_warmup``."""
    fractions: Floats
    """(F,), of a full run's examples, ascending, the last 1."""
    dev: Floats
    """(R, F, Qd), float16."""
    test: Floats
    """(R, F, Qt), float16."""
    base_dev: Floats
    """(Qd,): the model before training."""
    base_test: Floats
    """(Qt,)"""
    meta: Mapping[str, Any]
    """Rows, passages, epochs, lengths, model, device, versions, date, seconds a run."""

    def __post_init__(self) -> None:
        """Checks that the arrays fit together.

        Raises:
            ValueError: they do not.
        """
        runs, fractions = len(self.config), len(self.fractions)
        wanted: dict[str, tuple[int, ...]] = {
            **{name: (len(self.learning_rate),) for name in _OF_A_CONFIGURATION},
            **dict.fromkeys(_OF_A_RUN[:4], (runs,)),
            "dev": (runs, fractions, len(self.base_dev)),
            "test": (runs, fractions, len(self.base_test)),
        }
        for name, shape in wanted.items():
            if (found := getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must have the shape {shape}, but has {found}")
        if runs and not 0 <= self.config.min() <= self.config.max() < len(self.learning_rate):
            raise ValueError("every run must be of one of the table's configurations, but config names others")

    def arguments(self, config: int) -> dict[str, float | int]:
        """Returns what configuration `config` sets, by FlagEmbedding's and transformers' names."""
        return {name: getattr(self, name)[config].item() for name in _OF_A_CONFIGURATION}

    def rows(self, *, budget: float = 1.0, schedule: str = "linear", seed: int | None = None) -> Integers:
        """Returns the numbers of the runs of one kind, of every seed or of one."""
        chosen = np.isclose(self.budget, budget) & (self.schedule == schedule)
        return np.flatnonzero(chosen if seed is None else chosen & (self.seed == seed))

    def means(self, split: str) -> Floats:
        """Returns mean scores over the queries of a split, float64 of shape (R, F); NaN where there are none."""
        scores: Floats = getattr(self, split)
        means: Floats = scores.mean(axis=2, dtype=np.float64)
        return means

    @classmethod
    def load(cls, path: Path) -> "RecordedTable":
        """Reads what `save` wrote.

        Raises:
            ValueError: the arrays in the file do not fit together.
        """
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return cls(**arrays | {"meta": json.loads(str(arrays["meta"]))})

    def save(self, path: Path) -> None:
        """Writes the table; a kill leaves the file that was there before."""
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            np.savez_compressed(file, **{**asdict(self), "meta": np.array(json.dumps(dict(self.meta)))})
        temporary.replace(path)
