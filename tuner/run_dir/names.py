"""What the files and folders of a run directory are called; those of a trial's own folder in `trainables.names`."""

import re
from pathlib import Path

from trainables.files import sha256
from trainables.names import CHECKPOINT, CURVES, DATA, POOL

CONFIG_FILE = "config.yaml"
"""What was asked for."""
STUDY_FILE = "study.db"
RESULT_FILE = "result.json"
"""The verdict; in a bundle, too."""
REPORT_FILE = "report.html"
LIVE_PAGE, STATUS = "live.html", "status.json"
"""What a search that runs says of itself, for people and for programs."""
PAGES = (RESULT_FILE, REPORT_FILE, LIVE_PAGE, STATUS)
"""Files that only tell what the study and the trials hold."""
TRIALS = "trials"
BEST = "best"
"""The bundle of what is recommended."""
SETTINGS = "settings"
"""Copies of the settings files that a request names."""
SETTINGS_SUFFIXES = (".yaml", ".yml", ".json")
RAY = ".ray"
"""What the program keeps while it runs, where every node of a cluster sees it."""
MANIFEST, ARRIVING = "manifest.json", ".arriving.json"
"""In RUN/data: what lies there, and what is to lie there while it is being replaced."""
TRAIN, EVAL, GUARDS, EXAMPLE = "train", "eval", "guards", "example"
"""Folders of RUN/data."""
EXAMPLE_FILE = "dataset.jsonl"
"""In RUN/data/example: the rows to train on."""
ENTRIES = (CONFIG_FILE, DATA, STUDY_FILE, TRIALS, BEST, *PAGES, SETTINGS, RAY)
"""What a search writes into its run directory."""
TRAIN_SCRIPT = "train.sh"
"""In a bundle: the command that trains the model again."""

_TRIAL = re.compile(r"\d{4,}(-seed-?\d+|-alpha\d\.\d\d|-as-[0-9a-f]{8}|-previous)?")


def trial_name(number: int) -> str:
    """Returns the folder under RUN/trials of trial `number`: ``0007``."""
    return f"{number:04d}"


BASE_FOLDER = trial_name(0)
"""Under RUN/trials: the base model with the user's own settings."""
PREVIOUS_FOLDER = f"{BASE_FOLDER}-previous"
"""Under RUN/trials: what the model of an earlier search scores, where this one began with `--again`."""


def retraining_name(number: int, seed: int) -> str:
    """Returns the folder under RUN/trials of the retraining of trial `number` with another seed: ``0007-seed43``."""
    return f"{trial_name(number)}-seed{seed}"


def mixture_name(number: int, alpha: float) -> str:
    """Returns the folder under RUN/trials of a mixture of trial `number` with the base model: ``0007-alpha0.50``."""
    return f"{trial_name(number)}-alpha{alpha:.2f}"


def encoded_base_name(digest: str) -> str:
    """Returns the folder under RUN/trials of the base model with settings that have a hash: ``0000-as-1a2b3c4d``."""
    return f"{BASE_FOLDER}-as-{digest[:8]}"


def is_trial(name: str) -> bool:
    """Returns whether a folder is called as one of RUN/trials, by one of the functions above."""
    return _TRIAL.fullmatch(name) is not None


def is_mixture(name: str) -> bool:
    """Returns whether a folder is called by `mixture_name`."""
    return "-alpha" in name


def is_encoded_base(name: str) -> bool:
    """Returns whether a folder is called by `encoded_base_name`."""
    return name.startswith(f"{BASE_FOLDER}-as-")


def trial_path(run_dir: Path, name: str) -> Path:
    """Returns RUN/trials/NAME."""
    return run_dir / TRIALS / name


def part_name(trial: str) -> str:
    """Returns what a trial's folder is called relative to the run directory: ``trials/0007``."""
    return f"{TRIALS}/{trial}"


def curves_part(trial: str) -> str:
    """Returns where a trial's curves are relative to the run directory: ``tensorboard/0007``."""
    return f"{CURVES}/{trial}"


def pool_file(run_dir: Path) -> Path:
    """Returns the file of the passages that rungs are scored on; it is there where the corpus has more of them."""
    return trial_path(run_dir, BASE_FOLDER) / POOL


def eval_path(run_dir: Path) -> Path:
    """Returns RUN/data/eval, a BEIR folder."""
    return run_dir / DATA / EVAL


def weights_of(run_dir: Path, number: int) -> Path:
    """Returns the folder of a trial's weights; it is there while they are kept."""
    return trial_path(run_dir, trial_name(number)) / CHECKPOINT


def settings_name(file: Path) -> str:
    """Returns what the copy of a settings file is called: by its content."""
    return f"{sha256(file)[:12]}{file.suffix}"


def task_name(guard: str) -> str:
    """Returns what results call a guard: the folder's own name, wherever it is named from, or mteb's of the task."""
    path = Path(guard.partition("?")[0] if "://" in guard else guard)
    return path.name if path.name not in ("", "..") else path.resolve().name
