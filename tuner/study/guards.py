"""What a fine-tune forgets elsewhere, and the cheap remedy: scores on guard tasks, and mixtures with the base model.

Workers leave ``guard.json`` (task -> score) and ``mixtures.json`` in the trials' folders; what follows from them is
decided here, on dev and guards alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.names import GUARD, MIXTURES
from tuner.run_dir.names import task_name, trial_name, trial_path

ALPHAS = (0.25, 0.5, 0.75)
"""Shares of the winner in its mixtures with the base model."""

GuardScores = Mapping[str, float]
"""Guard task -> main score of the dense head."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """start + alpha * (trained - start), as scored on dev and guards."""

    alpha: float
    """0: the base model; 1: the trained one."""
    dev: float
    """The objective."""
    guard: GuardScores
    dev_all: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class GuardRule:
    """What must not get worse, as it is asked for now: it may have been otherwise before a ``--resume``."""

    tasks: tuple[str, ...] = ()
    """Names of the guard tasks."""
    tolerance: float = 0.0
    """What each of them may lose."""

    @classmethod
    def of(cls, guard: Sequence[str], tolerance: float) -> "GuardRule":
        """Returns the rule of ``--guard`` and ``--guard_tolerance``."""
        return cls(tasks=tuple(map(task_name, guard)), tolerance=tolerance)

    def among(self, scores: GuardScores) -> dict[str, float]:
        """Returns those of `scores` that are asked for."""
        return {task: value for task, value in scores.items() if task in self.tasks}

    def read(self, run_dir: Path, name: str) -> dict[str, float] | None:
        """Returns what the model in RUN/trials/`name` scores on the tasks; None where it was scored on none of them."""
        return self.among(read_scores(run_dir, name) or {}) or None


UNGUARDED = GuardRule()
"""No guard is asked for."""


def read_scores(run_dir: Path, name: str) -> dict[str, float] | None:
    """Returns the guard scores of the model in RUN/trials/`name`; None where they were not taken."""
    path = trial_path(run_dir, name) / GUARD
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def lost(base: GuardScores, scores: GuardScores | None, tolerance: float) -> list[str]:
    """Returns the tasks of `base` that lose more than `tolerance`; all of them where there are no scores."""
    return [task for task, value in base.items() if scores is None or value - scores.get(task, 0.0) > tolerance]


def excess(base: GuardScores, scores: GuardScores, tolerance: float) -> float:
    """Returns the largest loss less `tolerance`: a constraint in Optuna's sense, violated above 0.

    Only what both were scored on counts: the guards may have been changed since the base model was scored.
    """
    return max((value - scores[task] for task, value in base.items() if task in scores), default=0.0) - tolerance


def read_mixtures(run_dir: Path, number: int, metric: str) -> list[Mixture]:
    """Returns the mixtures of trial `number` that were scored, by rising alpha."""
    path = trial_path(run_dir, trial_name(number)) / MIXTURES
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else []
    return [Mixture(alpha=row["alpha"], dev=row["dev"][metric], guard=row["guard"], dev_all=row["dev"]) for row in rows]


def choose(base: Mixture, trained: Mixture, mixtures: Sequence[Mixture], tolerance: float) -> tuple[Mixture, str]:
    """Chooses what is judged on test: the trained model, or a mixture that was measured to be better.

    A mixture replaces the trained model in two cases. It is better on both, dev and the mean of the guards; of several,
    the best on dev. Or the trained model loses a guard beyond the tolerance, and the mixture loses none and is better
    than the base model on dev.

    Returns:
        The choice and its reason.
    """
    keeps = [m for m in mixtures if not lost(base.guard, m.guard, tolerance)]
    better = [m for m in keeps if m.dev > trained.dev and _mean(m.guard) > _mean(trained.guard)]
    if better:
        best = max(better, key=lambda m: m.dev)
        return best, (
            f"With alpha {best.alpha:g} it is better than the trained model on both: dev {best.dev:.4f} over "
            f"{trained.dev:.4f}, guards {_mean(best.guard):.4f} over {_mean(trained.guard):.4f}."
        )
    forgets = lost(base.guard, trained.guard, tolerance)
    remedies = [m for m in keeps if m.dev > base.dev] if forgets else []
    if remedies:
        best = max(remedies, key=lambda m: m.dev)
        return best, (
            f"The trained model loses {', '.join(forgets)} beyond {tolerance:g}; with alpha {best.alpha:g} no guard "
            f"does, and dev is {best.dev:.4f} ({trained.dev:.4f} trained, {base.dev:.4f} base)."
        )
    return trained, "No mixture is better than the trained model on both, dev and guards."


def _mean(scores: GuardScores) -> float:
    return sum(scores.values()) / len(scores)
