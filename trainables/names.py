"""What the files and folders of a trial are called, in its folder RUN/trials/NAME."""

import re

CONFIG = "config.json"
"""What the trial trains with."""
METRICS = "metrics.jsonl"
"""What it reported, one rung a line."""
LOG = "log.txt"
GUARD = "guard.json"
"""Guard task -> main score."""
MIXTURES = "mixtures.json"
"""Scores of the mixtures of its weights with the base model's."""
HYBRID = "hybrid.json"
"""Weights of the hybrid score."""
MTEB = "mteb.json"
"""What mteb itself wrote of the final scores."""
POOL = "pool.json"
"""Of the base model: the passages that dev is scored on at rungs, where the corpus has more."""
PREVIOUS = "previous.json"
"""The model of an earlier search, where the folder holds its scores."""
HEADS = ("colbert_linear.pt", "sparse_linear.pt")
"""Beside the encoder's weights; FlagEmbedding's names. Only BGE-M3, and what was trained as it is, has them."""
CHECKPOINT = "checkpoint"
"""The folder of the weights of its best rung."""
RESUME = "resume"
"""The folder of its training states, while it is alive."""
DATA, TOKENS = "data", "tokens"
"""The folder of a run's data, beside its trials, and the folder of token ids in there."""
CURVES, MLFLOW = "tensorboard", "mlflow.db"
"""In a run directory: the folder of each trial's curves by its name, and the database of them, by ``--report_to``."""

_FILES = re.compile(
    r"(config|dev|dev-pool|pool|test|guard|mixtures|hybrid|previous|mteb|mteb-.+)\.json|log(-\d+)?\.txt|metrics\.jsonl"
)


def scores_file(split: str, *, pooled: bool = False) -> str:
    """Returns the name of the file with the scores on a split, or on a pool of it: ``dev.json``, ``dev-pool.json``."""
    return f"{split}-pool.json" if pooled else f"{split}.json"


def is_trial_file(name: str) -> bool:
    """Returns whether a file in a trial's folder is called as one that a trial writes there."""
    return _FILES.fullmatch(name) is not None


def mteb_file(task: str) -> str:
    """Returns the name of the file with what mteb itself wrote of a guard task."""
    return f"mteb-{task}.json"


def worker_log(rank: int) -> str:
    """Returns the name of a worker's log; the first one's is the trial's."""
    return f"log-{rank}.txt" if rank else LOG
