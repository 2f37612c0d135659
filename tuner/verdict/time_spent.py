"""Where the time of a finished search went."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna import Study

from trainables.files import whole_records
from trainables.names import METRICS
from tuner.run_dir.names import BASE_FOLDER, TRIALS, is_encoded_base, is_mixture
from tuner.study.trials import SECONDS

PARTS = ("training", "scoring", "overhead")
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
    seconds = {"total": total} | dict.fromkeys((*PARTS, *FINALS), 0.0)
    for trial in (trial for study in studies if study for trial in study.get_trials(deepcopy=False)):
        for part in PARTS:
            seconds[part] += trial.user_attrs.get(SECONDS, {}).get(part, 0.0)
    for path in (run_dir / TRIALS).glob(f"*/{METRICS}"):
        for part, record in _final_records(path):
            seconds[part] += sum(record["seconds"].values())
    return seconds


def parts_of(seconds: Mapping[str, float], slots: int) -> dict[str, float]:
    """Returns what the clock's time went to, by part: the parts sum to it.

    Args:
        seconds: What `time_spent` returned.
        slots: How many jobs ran at the same time: of what they took together, each part is its share of the clock.

    Returns:
        With ``rest``, what no job took: the start, imports, the split, the report. It is 0 where jobs took more than
        the clock has, as where a search was resumed with fewer slots; the parts are then shares of their sum.
    """
    parts = {name: spent / slots for name, spent in seconds.items() if name != "total" and spent > 0}
    jobs = sum(parts.values())
    scale = min(1.0, seconds["total"] / jobs) if jobs else 1.0
    shares = {name: spent * scale for name, spent in parts.items()}
    return shares | {"rest": max(0.0, seconds["total"] - sum(shares.values()))}


def _final_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields what jobs that only scored were for, and their records.

    The base model is scored on dev before it is on test: the study counts that, but not of one that encodes as a trial.
    """
    name = path.parent.name
    scorings = [record for record in whole_records(path) if record["rung"] == 0]
    if name == BASE_FOLDER:
        scorings = scorings[1:]
    first = next((record for record in scorings if record["scores"]), None)
    for record in scorings:
        on_dev = record.get("split") == "dev" or (record is first and is_encoded_base(name))
        yield "scoring" if on_dev else _stage(name, record), record


def _stage(name: str, record: Mapping[str, Any]) -> str:
    """Which of `FINALS` a job was: only mixtures, which lie in a folder of their own later, score dev and guards."""
    if not record["scores"]:
        return "guards"
    return "mixtures" if record["guards"] and not is_mixture(name) else "test"
