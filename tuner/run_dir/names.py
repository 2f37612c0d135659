"""What the files and folders of a run directory are called."""

from pathlib import Path


def task_name(guard: str) -> str:
    """Returns what results call a guard: the folder's own name, wherever it is named from, or mteb's of the task."""
    path = Path(guard.partition("?")[0] if "://" in guard else guard)
    return path.name if path.name not in ("", "..") else path.resolve().name


def mixture_name(number: int, alpha: float) -> str:
    """Returns the folder under RUN/trials of a mixture of trial `number` with the base model."""
    return f"{number:04d}-alpha{alpha:.2f}"


def weights_of(run_dir: Path, number: int) -> Path:
    """Returns the folder of a trial's weights; it is there while they are kept."""
    return run_dir / "trials" / f"{number:04d}" / "checkpoint"
