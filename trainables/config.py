"""What a slot is asked to do, and what it answers. Plain values: both cross processes and files as JSON."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One job of a slot: train a configuration and score it at every rung, or only score a checkpoint."""

    name: str
    """Folder under RUN/trials: ``0007``, or ``0007-seed43`` for a finalist's retraining."""
    directory: str
    """RUN/trials/NAME: metrics.jsonl, log.txt, dev.json, test.json, checkpoint/ (best rung), resume/ (while alive)."""
    arguments: Mapping[str, Any]
    """FlagEmbedding's and transformers' arguments, every default resolved but `output_dir`."""
    eval_data: str
    """BEIR folder."""
    metric: str
    """The objective, as ``dense.ndcg_at_10``."""
    rungs: tuple[float, ...] = ()
    """Shares of the training examples at which to score, the last 1.0. Empty: score only."""
    split: str = "dev"
    """What a score-only job scores: ``dev`` or ``test``."""
    checkpoint: str | None = None
    """The folder that a score-only job scores. None: the base model."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return {**dataclasses.asdict(self), "rungs": list(self.rungs), "arguments": dict(self.arguments)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrialConfig":
        """The inverse of `to_dict`."""
        return cls(**{**values, "rungs": tuple(values["rungs"])})


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
    seconds: Mapping[str, float] = field(default_factory=dict)
    """``training``, ``scoring`` and ``overhead`` so far, in seconds."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RungReport":
        """The inverse of `to_dict`."""
        return cls(**values)


Report = Callable[[RungReport], bool]
"""Called at every rung; the answer False stops the trial there (it was pruned)."""

Progress = Callable[[int, int], None]
"""Called now and then with (steps done, steps in all)."""
