"""What a search keeps on disk, what that takes, and what happens when there is no room for more."""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from trainables.config import TrialConfig
from trainables.files import remove_folder, settle_folder
from trainables.names import CHECKPOINT, CONFIG, DATA, LOG, METRICS, RESUME, TOKENS
from tuner.data.beir import count_passages
from tuner.errors import RequestError
from tuner.interrupts import SearchStopped
from tuner.request.config import SECRETS, SearchConfig
from tuner.run_dir.names import TRIALS, is_trial
from tuner.run_dir.replaced import ASIDE

_STATES = 3  # the newest two, and one that is being written
_STATE_WEIGHTS = 3.5  # weights and AdamW's two moments; DeepSpeed in 16 bits adds those that it trains with
_TOKEN = 4  # bytes of a token's id
_PATIENCE_SECONDS = 1800.0
_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
"""The names that safetensors files give precisions."""
_PAUSE_SECONDS = 5.0


def trial_bytes(weights: int) -> int:
    """Returns the most that a running trial has on disk, from the size of the model's weights.

    Its best rung's weights, and better ones being written beside them; three training states.
    """
    return int(weights * (2 + _STATES * _STATE_WEIGHTS))


def search_bytes(config: SearchConfig, weights: int, kept: int, tokens: int = 0) -> int:
    """Returns the most that a search has on disk: `kept` trials' weights, running trials, the bundle, token ids."""
    return (kept + 1) * weights + config.concurrent_trials * trial_bytes(weights) + tokens


def token_bytes(eval_data: Path, passage_max_len: int) -> int:
    """Returns the most that the token ids of a corpus have on disk: a text has no more tokens than bytes."""
    corpus = eval_data / "corpus.jsonl"
    tokens = min(corpus.stat().st_size, count_passages(eval_data) * passage_max_len) if corpus.exists() else 0
    return tokens * _TOKEN


def weights_bytes(model: Path) -> int:
    """Returns the size of a model folder's weights in float32, which trials train and write."""
    return sum(file.stat().st_size * (2 if "16" in _dtype(file) else 1) for file in _weights(model))


def stored_dtype(model: Path) -> str:
    """Returns the precision of the weights in a model folder, as ``float16``; ``float32`` where nothing tells."""
    return next((_dtype(file) for file in _weights(model)), "float32")


def _weights(model: Path) -> list[Path]:
    files = sorted(file for pattern in ("*.safetensors", "pytorch_model*.bin") for file in model.glob(pattern))
    return [file for file in files if file.suffix == ".safetensors"] or files


def _dtype(weights: Path) -> str:
    """What a safetensors file begins with says, or config.json of a file that is opened by torch alone.

    transformers 5 goes by the weights themselves, too, whatever config.json says.
    """
    if weights.suffix == ".safetensors":
        with contextlib.suppress(ValueError), weights.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            tensors = json.loads(file.read(min(length, weights.stat().st_size)))
            stored = (tensor.get("dtype") for tensor in tensors.values())
            return next((_FLOATS[dtype] for dtype in stored if dtype in _FLOATS), "float32")
    config = weights.parent / "config.json"
    values = json.loads(config.read_text("utf-8")) if config.exists() else {}
    return str(values.get("dtype") or values.get("torch_dtype") or "float32")


def fit_to_disk(config: SearchConfig, weights: int, run_dir: Path, tokens: int = 0) -> tuple[SearchConfig, list[str]]:
    """Returns `config` with as many kept checkpoints as there is room for, and what was lowered.

    Args:
        config: The search.
        weights: Bytes of one checkpoint.
        run_dir: Where the checkpoints will be; what the search that goes on, or is to be deleted, has there is counted
            as free.
        tokens: Bytes of the corpus's token ids.

    Raises:
        RequestError: The disk, or `--disk_budget`, is too small for the search with the fewest checkpoints.
    """
    room, what = _room(config, run_dir)
    fewest = max(1, config.finalist_count) + 1  # finalists, and the user's own settings
    wanted = max(config.keep_checkpoints, config.finalist_count, 1) + 1
    fits = int((room - search_bytes(config, weights, 0, tokens)) // weights) if weights else wanted
    if fits < fewest:
        needs = search_bytes(config, weights, fewest, tokens)
        raise RequestError(
            [
                f"{what} must hold {gigabytes(needs)} ({fewest} checkpoints of {gigabytes(weights)}, "
                f"{config.concurrent_trials} running trials, the bundle and token ids), but it is {gigabytes(room)}; "
                "free some, or lower --finalists or --concurrent_trials"
            ]
        )
    if fits >= wanted:
        return config, []
    lowered = f"{what} is {gigabytes(room)}: {fits - 1} checkpoints are kept instead of {config.keep_checkpoints}"
    return config.replace(keep_checkpoints=fits - 1), [lowered]


def _room(config: SearchConfig, run_dir: Path) -> tuple[float, str]:
    goes = [run_dir] if config.resume or config.replace_search else []
    goes += [run_dir / ASIDE] if config.replace_search else []
    earlier = sum(used_bytes(folder / TRIALS) for folder in goes)
    free = shutil.disk_usage(run_dir).free + earlier
    if config.disk_budget_bytes is not None and config.disk_budget_bytes < free:
        return config.disk_budget_bytes, f"--disk_budget {config.disk_budget}"
    return free, f"the free space of {run_dir}"


def used_bytes(folder: Path) -> int:
    """Returns the bytes of all files under a folder."""
    return sum(_sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                yield path.stat().st_size
        except OSError:  # a worker has just removed it
            continue


def gigabytes(size: float) -> str:
    """Returns a size as people write it: ``2.3 GB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


class TrialFolders:
    """The folders of a search's trials: weights of those worth keeping, states of those alive, room for the next.

    Args:
        trials: RUN/trials.
        trial_bytes: What a trial may write while it runs.
        budget: Bytes for all trials; None: what the disk has.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        trials: Path,
        *,
        trial_bytes: int = 0,
        budget: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trials, self._trial_bytes, self._budget, self._clock = trials, trial_bytes, budget, clock
        self._holding = {folder.name for folder in trials.glob("*") if is_trial(folder.name)}
        """Folders that may have weights or states in them."""
        self._failed, self._since = -math.inf, math.inf

    def opened(self, job: TrialConfig) -> None:
        """A job starts; its folder says what it trains with: what the machine could honour, in the installed names.

        Raises:
            OSError: That could not be written.
        """
        self._holding.add(job.name)
        if not job.rungs:
            return
        folder = Path(job.directory)
        folder.mkdir(parents=True, exist_ok=True)
        values = job.to_dict()
        values["arguments"] = {name: value for name, value in values["arguments"].items() if name not in SECRETS}
        (folder / CONFIG).write_text(json.dumps(values, indent=2, default=str), encoding="utf-8")

    def rungs_reached(self, name: str) -> int:
        """How many rungs trial `name` has written the scores of, whether the study was told of them or not."""
        metrics = self._trials / name / METRICS
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def log(self, name: str, text: str) -> None:
        """Adds to the log of trial `name`, where the disk lets it."""
        with contextlib.suppress(OSError):
            (self._trials / name).mkdir(parents=True, exist_ok=True)
            with (self._trials / name / LOG).open("a", encoding="utf-8") as log:
                log.write(text)

    def keep(self, weights: set[str], alive: set[str]) -> list[str]:
        """Removes states of all but `alive`, and weights of all but those and `weights`; returns the folders.

        So it does with what saves left that did not end.
        """
        ended = self._holding - alive
        for name in ended:
            settle_folder(self._trials / name / CHECKPOINT)
        removed = [*(f"{name}/{RESUME}" for name in ended), *(f"{name}/{CHECKPOINT}" for name in ended - weights)]
        for folder in removed:
            remove_folder(self._trials / folder)
        self._holding &= weights | alive
        return removed

    def refused(self) -> None:
        """A file could not be written."""
        self._failed = self._clock()
        self._since = min(self._since, self._failed)

    def wrote(self) -> None:
        """A trial came to its next rung."""
        self._failed, self._since = -math.inf, math.inf

    def shortage(self, running: int) -> str | None:
        """Says why no trial can be started beside the `running` ones; None where there is room.

        Raises:
            SearchStopped: There has been none for half an hour.
        """
        why = self._too_little() or (
            "a trial could not write its files" if self._clock() - self._failed < _PAUSE_SECONDS else None
        )
        if why is None:
            self._since = self._since if self._failed > -math.inf else math.inf
            return None
        self._since = min(self._since, self._clock())
        if not running and self._clock() - self._since > _PATIENCE_SECONDS:
            raise SearchStopped(f"no room on the disk: {why}")
        return f"paused, no room on the disk: {why}; free some, and the search goes on by itself"

    def _too_little(self) -> str | None:
        free = shutil.disk_usage(self._trials if self._trials.is_dir() else self._trials.parent).free
        if free < max(1, self._trial_bytes):
            return f"{self._trials} has {gigabytes(free)}, and a trial writes up to {gigabytes(self._trial_bytes)}"
        holding = [*(self._trials / name for name in self._holding), self._trials.parent / DATA / TOKENS]
        used = 0 if self._budget is None else sum(map(used_bytes, holding))
        if self._budget is not None and used + self._trial_bytes > self._budget:
            return f"--disk_budget is {gigabytes(self._budget)}, {gigabytes(used)} of it in use"
        return None
