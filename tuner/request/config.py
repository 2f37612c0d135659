"""What a search is asked to do: one keyword-only dataclass, every default once."""

import dataclasses
import itertools
import math
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from trainables.scoring.metric import Metric
from tuner.errors import RequestError
from tuner.request.arguments import Argument
from tuner.request.checks import contradictions, read_arguments
from tuner.request.storage_url import keeps_nothing
from tuner.run_dir.object_storage import is_url, url_problem

DEFAULT_MODEL = "BAAI/bge-m3"

EXAMPLE_DEFAULTS: Mapping[str, Any] = {
    "search_space": "example",
    "num_trials": 7,
    "time_budget": "265",
    "finalists": 1,
    "finalist_seeds": 1,
    "keep_checkpoints": 2,
    "pruner": "successive_halving",
    "rungs": (0.25, 0.5, 1.0),
}
"""The search's own defaults where the embedded example runs: it is to end within 5 minutes on 2 cores.

So few trials have no time for paused ones to go on, nor for another rung of scoring.
"""

SECRETS = ("token", "hub_token")
"""Arguments that are written nowhere."""

_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_TUPLES = ("rungs", "guard", "warm_start")
_LOCATIONS = ("run_dir", "resume", "output_dir", "train_data", "eval_data", "guard", "model_name_or_path")
"""What may be a URL of object storage."""
_TIME_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """One search. Every field but `arguments` is a flag of ``python -m tuner.search`` of the same name.

    (`replace_search` is ``--replace``.)
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """FlagEmbedding's and transformers' arguments as the user gave them; the search space varies some of them."""
    run_dir: str | None = None
    """Where everything is kept: a folder, or s3://BUCKET/PREFIX. None: ``--output_dir`` or else runs/DATE-TIME."""
    num_trials: int = 16
    """Trials in the study; the base model (trial 0) and your own settings (trial 1) are among them."""
    time_budget: str | None = None
    """Start no trial that would end later: seconds, or a number with m, h or d (90m, 8h)."""
    search_space: str | None = None
    """A name in search_spaces/, a YAML file, or module:function. None: m3, and `example` for the embedded example."""
    sampler: str = "tpe"
    """Optuna sampler: tpe, random, qmc or gp."""
    pruner: str = "promotion"
    """Who is stopped at a rung: successive_halving; promotion (stopped trials go on once they are among the best);
    paired (by a test over dev's queries against the best at the rung), halving_paired (both), hyperband, median, none.
    """
    reduction_factor: int = 2
    """successive_halving and promotion: one trial in so many goes on at each rung."""
    warm_start: tuple[str, ...] = ()
    """Run directories of earlier searches, of other data or another model too: the first trials are drawn near what
    won there."""
    patience: int | None = None
    """Start no further trial once the ones that are left are expected to add less than dev can tell apart, by what the
    last so many have added. None: all of --num_trials are made."""
    metric: str = "dense.ndcg_at_10"
    """What the study maximises: HEAD.MEASURE (dense, sparse, colbert, hybrid; ndcg_at_10, mrr_at_10, recall_at_10,
    recall_at_100), a weighted sum (0.7*dense.ndcg_at_10+0.3*hybrid.ndcg_at_10), or two of these joined by a comma: then
    the study keeps the Pareto front, prunes nothing, and ranks by the mean of the two."""
    guard: tuple[str, ...] = ()
    """BEIR folders or mteb tasks on which nothing may be lost: the base model and the finalists are scored there."""
    guard_tolerance: float = 0.01
    """Loss of a guard's main score from which the verdict turns."""
    guard_constraint: bool = False
    """Score the guards at every trial's last rung, and let the sampler stay away from trials that lose beyond it."""
    rungs: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    """Shares of the training examples after which a trial is scored on dev and may be pruned."""
    eval_data: str | None = None
    """BEIR folder with qrels/dev.tsv and qrels/test.tsv. None: dev and test are split off the training data."""
    storage: str | None = None
    """Optuna storage URL, or a .journal file. None: study.db in the run directory."""
    study_name: str | None = None
    """Name of the study in --storage, which may hold others. None: the run directory's, and some digits of its own."""
    address: str | None = None
    """Ray cluster to use (`auto`, ray://...). None: a local one is started and stopped."""
    gpus_per_trial: float | None = None
    """GPUs a trial holds; below 1, several share a card; 0 trains on the CPU. None: 1 where there is a GPU, else 0."""
    accelerator_type: str | None = None
    """Kind of GPU that trials run on, as Ray names it (A10G, A100, H100). None: whichever is there."""
    workers_per_trial: int | None = None
    """Worker processes of a trial (data parallel). None: one a GPU, and one on the CPU."""
    concurrent_trials: int = 1
    """Slots: trials that run side by side."""
    seed: int = 42
    """Seed of the split, of the sampler and of training."""
    finalists: int | None = None
    """Best trials that are retrained with other seeds before one is called the winner; those whose weights were not
    kept are passed over. None: one in five, at most 3."""
    finalist_seeds: int = 2
    """How many other seeds each finalist is retrained with."""
    keep_checkpoints: int = 3
    """Best trials whose weights stay on disk (the user's own settings and the winner always do)."""
    disk_budget: str | None = None
    """Most that all trials may have on disk, as 200GB: it lowers --keep_checkpoints. None: the free space."""
    price_per_hour: float | None = None
    """What an hour of all that the search runs on costs; --dry_run multiplies it by the hours that it expects."""
    replace_search: bool = False
    """Delete the search that the run directory holds (``--replace``); with ``--overwrite_output_dir`` the same request
    goes on with it, and for another one it is kept under a dated name."""
    resume: str | None = None
    """Run directory of a stopped or finished search to take up again."""
    submit: str | None = None
    """Ray dashboard (http://127.0.0.1:8265) to which this command is submitted as a job, and followed."""
    dry_run: bool = False
    """Check everything, train a few steps, print the plan, and stop. Exit code: 0, or 2 where the request is wrong or
    your own settings do not train."""

    def __post_init__(self) -> None:
        """Reads every value in its type; whoever gave it, the same one is read in the same way.

        Raises:
            RequestError: With every value that cannot be read, every name that is unknown, every rule that is broken.
        """
        problems = self._read_options()
        arguments, unread = read_arguments(self.arguments, option_types())
        object.__setattr__(self, "arguments", arguments)
        problems += unread + self.problems()
        if problems:
            raise RequestError(problems)

    def _read_options(self) -> list[str]:
        problems = []
        for name, like in option_types().items():
            value, default = getattr(self, name), getattr(type(self), name)
            is_left_out = value is None or (default == () and isinstance(value, list | tuple) and not value)
            try:
                read = default if is_left_out else like.parse(value)
            except ValueError as error:
                problems.append(f"--{name}: {error}")
                read = default
            object.__setattr__(self, name, tuple(read) if name in _TUPLES else read)
        object.__setattr__(self, "metric", self.metric.replace(" ", ""))
        return problems

    def problems(self) -> list[str]:
        """Returns one line for each rule that a value breaks; empty when the configuration is sound."""
        rules = (
            (
                self.num_trials >= 2,
                f"num_trials >= 2 must hold (base model and your settings), but got {self.num_trials}",
            ),
            (self.reduction_factor >= 2, f"reduction_factor >= 2 must hold, but got {self.reduction_factor}"),
            (self.patience is None or self.patience >= 1, f"patience >= 1 must hold, but got {self.patience}"),
            (self.concurrent_trials >= 1, f"concurrent_trials >= 1 must hold, but got {self.concurrent_trials}"),
            ((self.finalists or 0) >= 0, f"finalists >= 0 must hold, but got {self.finalists}"),
            (self.finalist_seeds >= 0, f"finalist_seeds >= 0 must hold, but got {self.finalist_seeds}"),
            (self.keep_checkpoints >= 0, f"keep_checkpoints >= 0 must hold, but got {self.keep_checkpoints}"),
            ((self.gpus_per_trial or 0) >= 0, f"gpus_per_trial >= 0 must hold, but got {self.gpus_per_trial}"),
            ((self.workers_per_trial or 1) >= 1, f"workers_per_trial >= 1 must hold, but got {self.workers_per_trial}"),
            (
                self.storage is None or not keeps_nothing(self.storage),
                f"--storage {self.storage}: it is in the memory of one process, and no other could read or resume the "
                "study; name a file (sqlite:///study.db, study.journal) or a server",
            ),
            (0 <= self.seed < 2**32, f"0 <= seed < 2**32 must hold, but got {self.seed}"),
            (0 <= self.guard_tolerance < 1, f"0 <= guard_tolerance < 1 must hold, but got {self.guard_tolerance}"),
            (
                bool(self.guard) or not self.guard_constraint,
                "guard_constraint needs a guard: name a BEIR folder or an mteb task with --guard",
            ),
            (_increasing_to_one(self.rungs), f"rungs must increase and end in 1.0, but got {self.rungs}"),
            (
                self.time_budget is None or 0 < _duration(self.time_budget) < math.inf,
                "time_budget must be positive, as 90m or 8h",
            ),
            ((self.price_per_hour or 0) >= 0, f"price_per_hour >= 0 must hold, but got {self.price_per_hour}"),
            (
                self.disk_budget is None or 0 < _size(self.disk_budget) < math.inf,
                "disk_budget must be positive, as 50GB or 1.5TB",
            ),
        )
        broken = [message for holds, message in rules if not holds]
        broken += self._url_problems()
        try:
            metric = self.objective
        except ValueError as error:
            return [*broken, str(error), *contradictions(self.arguments, workers=self.workers)]
        return broken + contradictions(self.arguments, workers=self.workers, metric=metric)

    def _url_problems(self) -> Iterator[str]:
        """URLs with secrets are refused before they are written down or sent anywhere."""
        for name in _LOCATIONS:
            value = getattr(self, name, None) or self.arguments.get(name) or ()
            for location in (value,) if isinstance(value, str) else value:
                if is_url(location) and (problem := url_problem(location)):
                    yield f"--{name} {problem}"

    @property
    def time_budget_seconds(self) -> float | None:
        """`time_budget` in seconds."""
        return None if self.time_budget is None else _duration(self.time_budget)

    @property
    def disk_budget_bytes(self) -> float | None:
        """`disk_budget` in bytes."""
        return None if self.disk_budget is None else _size(self.disk_budget)

    @property
    def finalist_count(self) -> int:
        """`finalists`, decided: a short search spends nothing on retraining."""
        return min(3, self.num_trials // 5) if self.finalists is None else self.finalists

    @property
    def objective(self) -> Metric:
        """What `metric` means."""
        return Metric.read(self.metric)

    @property
    def workers(self) -> int:
        """`workers_per_trial`, decided."""
        return self.workers_per_trial or max(1, math.ceil(self.gpus_per_trial or 0))

    @property
    def is_example(self) -> bool:
        """Neither data nor a model is named: the embedded example is meant."""
        return not self.arguments.get("train_data") and not self.arguments.get("model_name_or_path")

    @property
    def model_name_or_path(self) -> str:
        """The base model: as given, else BGE-M3."""
        return str(self.arguments.get("model_name_or_path") or DEFAULT_MODEL)

    def replace(self, **changes: Any) -> "SearchConfig":
        """Returns a copy with `changes`."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, as written to config.yaml."""
        values: dict[str, Any] = dataclasses.asdict(self)
        values |= {name: list(getattr(self, name)) for name in _TUPLES}
        return {**values, "arguments": dict(self.arguments)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SearchConfig":
        """The inverse of `to_dict`."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = {name: value for name, value in values.items() if name in known}
        tuples = {name: tuple(values[name]) for name in _TUPLES if name in values}
        return cls(**{**values, **tuples})


@cache
def option_types() -> Mapping[str, Argument]:
    """How the value of each of the search's own options is read: the fields of `SearchConfig`."""
    hints = typing.get_type_hints(SearchConfig)
    own = (each for each in dataclasses.fields(SearchConfig) if each.name != "arguments")
    return {each.name: _option(each.name, hints[each.name]) for each in own}


def _option(name: str, hint: Any) -> Argument:
    kinds = typing.get_args(hint) or (hint,)
    nullable = type(None) in kinds
    annotation = next(kind.__name__ for kind in (bool, int, float, str) if kind in kinds)
    return Argument(
        name=name,
        group="training",
        annotation=f"list[{annotation}]" if typing.get_origin(hint) is tuple else annotation,
        default=None if nullable else "",  # `--pruner none` is a name
        help="",
        choices=(),
        is_list=typing.get_origin(hint) is tuple,
    )


def new_run_dir(config: SearchConfig, stamp: str) -> str:
    """Returns the run directory of `config`, a path or a URL; `stamp` names it where the user did not."""
    return str(config.run_dir or config.arguments.get("output_dir") or Path("runs") / stamp)


def _increasing_to_one(rungs: tuple[float, ...]) -> bool:
    return bool(rungs) and rungs[-1] == 1.0 and rungs[0] > 0 and all(a < b for a, b in itertools.pairwise(rungs))


def _size(text: str) -> float:
    """Bytes of ``200GB``, ``1.5TB`` or ``64GiB``; 0 where `text` is none of these."""
    match = re.fullmatch(rf"({_NUMBER})\s*([kmgt]?)(i?)b?", str(text).strip(), re.IGNORECASE)
    if match is None:
        return 0.0
    thousand = 1024.0 if match[3] else 1000.0
    return float(match[1]) * math.pow(thousand, " kmgt".index(match[2].lower() or " "))


def _duration(text: str) -> float:
    """Seconds of ``90``, ``90m``, ``8h`` or ``1d``; 0 where `text` is none of these."""
    match = re.fullmatch(rf"({_NUMBER})\s*([smhd]?)", str(text).strip())
    return float(match[1]) * _TIME_UNITS[match[2]] if match else 0.0
