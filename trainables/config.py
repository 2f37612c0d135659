"""What a slot is asked to do, and what it answers. Plain values: both cross processes and files as JSON."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT_LENGTHS: Mapping[str, int] = {"query_max_len": 32, "passage_max_len": 128}
"""FlagEmbedding's own tokens of a text at most, where the user names none."""
DEFAULT_MODEL = "BAAI/bge-m3"
"""The base model where none is named."""
DEFAULT_SEED = 42
"""Of the split, of sampling and of training."""

_TUPLES = ("rungs", "guards", "alphas")


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One job of a slot: train a configuration and score it at every rung, or only score a checkpoint."""

    name: str
    """Folder under RUN/trials: ``0007``, or ``0007-seed43`` for a finalist's retraining."""
    directory: str
    """RUN/trials/NAME: metrics.jsonl, log.txt, dev.json, test.json, checkpoint/ (best rung), resume/ (while alive)."""
    arguments: Mapping[str, Any]
    """FlagEmbedding's and transformers' arguments: what the user asked for, and what the trial varies."""
    eval_data: str
    """BEIR folder."""
    metric: str
    """The objective, as ``dense.ndcg_at_10``."""
    rungs: tuple[float, ...] = ()
    """Shares of the training examples at which to score, the last 1.0. Empty: score only."""
    split: str | None = "dev"
    """What a score-only job scores: ``dev``, ``test``, or None for the guards alone."""
    checkpoint: str | None = None
    """The folder that a score-only job scores. None: the base model."""
    guards: tuple[str, ...] = ()
    """BEIR folders or mteb tasks that are scored too: by a score-only job, or at the last rung."""
    alphas: tuple[float, ...] = ()
    """Shares of `checkpoint` in mixtures with the base model that a score-only job scores, all of them."""
    alpha: float | None = None
    """Share of `checkpoint` in the one mixture that a score-only job scores and saves. None: no mixture."""
    pool: str | None = None
    """File of the passages that dev is scored on at rungs (`trainables.scoring.pool`). None: the whole corpus."""
    pool_hash: str | None = None
    """SHA-256 of that file."""
    pool_size: int | None = None
    """The base model's job writes that file, with at least so many passages."""

    memory_limit: float | None = None
    """Bytes of a device that a training step is planned to take less of (`m3.memory`), as steps that took more ran out
    of memory in this search. None: what the device has."""

    pauses: bool = False
    """Whether a trial that is stopped at a rung may be taken up again, so that its training state is saved there."""

    workers: int = 1
    """Processes that train it side by side, for the record: how many negatives a query had depends on it."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        lists = {name: list(getattr(self, name)) for name in _TUPLES}
        return {**dataclasses.asdict(self), **lists, "arguments": dict(self.arguments)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrialConfig":
        """The inverse of `to_dict`."""
        return cls(**{**values, **{name: tuple(values[name]) for name in _TUPLES if name in values}})


@dataclass(frozen=True, kw_only=True)
class RungReport:
    """Scores of a trial at one rung."""

    rung: int
    """1-based; 0 for a score-only job."""
    fraction: float
    """Share of the training examples seen."""
    step: int
    """Optimizer steps done."""
    examples: int
    """Training rows seen, over all workers."""
    loss: float | None
    """Mean training loss since the rung before; None for a score-only job."""
    value: float
    """The objective."""
    scores: Mapping[str, float]
    """Metric name -> mean over the queries of the split."""
    last: bool
    """Nothing follows: the trial is complete."""
    guards: Mapping[str, float] = field(default_factory=dict)
    """Guard task -> main score, where guards were scored."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """``training``, ``scoring`` and ``overhead`` so far, in seconds."""
    split: str | None = None
    """What a score-only job scored: ``dev`` (the whole corpus) or ``test``; None for mixtures and guards."""
    pool: Mapping[str, Any] = field(default_factory=dict)
    """Of the base model's job, where it made a pool: its ``hash``, how many ``passages`` it has of how many of the
    ``corpus``, and the objective's ``value`` on it."""
    queries: str = ""
    """The objective of each query, in the order of their ids, as `trainables.scoring.measures.packed` writes it."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RungReport":
        """The inverse of `to_dict`."""
        return cls(**values)


Report = Callable[[RungReport], bool]
"""Called at every rung; the answer False stops the trial there (it was pruned)."""

Progress = Callable[[int, int], bool | None]
"""Called after each step with (steps done, steps in all); the answer False asks to save the training state and stop."""

Train = Callable[[TrialConfig, Report, Progress], None]
"""Does one job, as `trainables.trial.run_trial` does."""


class TrialInterrupted(Exception):  # noqa: N818
    """The trial was asked to stop, and its training state is on disk."""
