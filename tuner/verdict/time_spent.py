"""Where the time of a finished search went."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna import Study

from trainables.files import whole_records

TRIALS = ("training", "scoring", "overhead")
"""Parts of a trial's time, and of a retraining's."""

FINALS = ("guards", "mixtures", "test")
"""What is scored when the search is over."""


def time_spent(run_dir: Path, studies: Sequence[Study | None], total: float) -> dict[str, float]:
    """Returns seconds by part, summed over all jobs, and `total`, the clock's.

    Args:
        run_dir: Holds trials/NAME/metrics.jsonl, where jobs that only score leave how long they took.
        studies: The search and the finalists' retrainings.
        total: Wall clock of the whole search.
    """
    seconds = {"total": total} | dict.fromkeys((*TRIALS, *FINALS), 0.0)
    for trial in (trial for study in studies if study for trial in study.get_trials(deepcopy=False)):
        for part in TRIALS:
            seconds[part] += trial.user_attrs.get("seconds", {}).get(part, 0.0)
    for path in (run_dir / "trials").glob("*/metrics.jsonl"):
        for record in _finals(path):
            seconds[_stage(path.parent.name, record)] += sum(record["seconds"].values())
    return seconds


def _finals(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yields the records of jobs that only scored; the base model's first is its trial, which the study counts."""
    scorings = [record for record in whole_records(path) if record["rung"] == 0]
    yield from scorings[1:] if path.parent.name == "0000" else scorings


def _stage(name: str, record: Mapping[str, Any]) -> str:
    """Which of `FINALS` a job was: only mixtures, which lie in a folder of their own later, score dev and guards."""
    if not record["scores"]:
        return "guards"
    return "mixtures" if record["guards"] and "-alpha" not in name else "test"
