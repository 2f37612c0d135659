"""What a search is asked to do: one keyword-only dataclass, every default once."""

import dataclasses
import itertools
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from trainables.config import DEFAULT_MODEL, DEFAULT_SEED
from trainables.scoring.metric import Metric
from tuner.errors import RequestError
from tuner.request import values
from tuner.request.arguments import Argument
from tuner.request.checks import contradictions, read_arguments
from tuner.request.storage_url import keeps_nothing
from tuner.run_dir.object_storage import is_url, url_problem

EXAMPLE_DEFAULTS: Mapping[str, Any] = {
    "search_space": "example",
    "num_trials": 5,
    "time_budget": "265",
    "finalists": 1,
    "finalist_seeds": 1,
    "keep_checkpoints": 2,
    "pruner": "successive_halving",
    "rungs": (0.5, 1.0),
}
"""The search's own defaults where the embedded example runs: it is to end within 5 minutes on 2 cores.

So few trials have no time for paused ones to go on, nor for another rung of scoring.
"""

SECRETS = ("token", "hub_token")
"""Arguments that are written nowhere."""

_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_TUPLES = ("rungs", "guard", "warm_start")
LOCAL_PATHS = ("search_space", "warm_start", "again", "deepspeed", "cache_dir", "cache_path")
"""Options and arguments that are paths of this machine alone."""
LOCATIONS = ("run_dir", "resume", "output_dir", "train_data", "eval_data", "guard", "model_name_or_path")
"""What may be a URL of object storage."""
_QUANTITIES = {"time_budget": "duration", "disk_budget": "size"}
"""Options that stay as they were written, once `Argument.parse` has read them."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """One search. Every field but `arguments` is a flag of ``python -m tuner.search`` of the same name.

    (`replace_search` is ``--replace``.)
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """FlagEmbedding's and transformers' arguments as the user gave them; the search space varies some of them."""
    run_dir: str | None = None
    """Folder, or s3://BUCKET/PREFIX, that everything is written to. None: --output_dir, else runs/DATE-TIME."""
    num_trials: int = 16
    """How many trials are made, the base model (trial 0) and your own settings (trial 1) included."""
    time_budget: str | None = None
    """Wall-clock limit of the whole search, as 90m, 8h, 1h30m or 2d, or a number of seconds. None: no limit."""
    search_space: str | None = None
    """What is varied: a name in search_spaces/, a YAML file, or module:function. None: m3, or m3_lora with
    --use_lora True."""
    sampler: str = "tpe"
    """Who suggests settings, of Optuna's samplers: tpe, random, qmc or gp."""
    pruner: str = "promotion"
    """Who stops weak trials at a rung: promotion (continues them once they are among the best), successive_halving,
    hyperband, median or none."""
    reduction_factor: int = 2
    """With successive_halving and promotion, one trial in so many continues at each rung."""
    warm_start: tuple[str, ...] = ()
    """Run directories of earlier searches, of other data or models too, near whose winners the first trials are drawn.
    None: a search begins without them."""
    again: str | None = None
    """Run directory of a finished search whose line, space and best settings a new one begins with, on data that grew;
    flags given now win. None: a search of its own."""
    patience: int | None = None
    """Start no more trials once the last so many promise less than dev can tell apart. None: --num_trials are made."""
    metric: str = "dense.ndcg_at_10"
    """What is maximised on dev: HEAD.MEASURE (dense, sparse, colbert, hybrid; ndcg_at_10, mrr_at_10, recall_at_10,
    recall_at_100), a weighted sum (0.7*dense.ndcg_at_10+0.3*hybrid.ndcg_at_10), or two joined by a comma, which give a
    Pareto front, prune nothing and rank by their mean."""
    guard: tuple[str, ...] = ()
    """Tasks that must not get worse, as BEIR folders or mteb tasks: base model and finalists are scored on them. None:
    nothing is guarded."""
    guard_tolerance: float = 0.01
    """Largest drop of a guard's main score that is accepted."""
    guard_constraint: bool = False
    """Score the guards in every trial, so that the sampler avoids settings that forget."""
    rungs: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    """When a trial is scored on dev and may be stopped, in shares of its training."""
    candidate_pool_size: int = 20_000
    """Passages to rank at rungs of a larger corpus: the judged ones, the base model's best 100 for each dev query, and
    others at random up to so many; 0 ranks all, as the base model's, finalists' and test scores always do."""
    eval_data: str | None = None
    """BEIR folder with qrels/dev.tsv and qrels/test.tsv to judge with. None: queries held out of the training data."""
    storage: str | None = None
    """Where the Optuna study is: a database's URL, or a .journal file. None: study.db in the run directory."""
    study_name: str | None = None
    """Name of the study in --storage. None: the run directory's, and some digits."""
    address: str | None = None
    """Ray cluster to run on: auto, or ray://HOST:10001 (not tested). None: a local one, which the search starts and
    stops."""
    gpus_per_trial: float | None = None
    """GPUs of one trial; below 1, trials share a card; 0 trains on the CPU. None: 1 where there is a GPU, else 0."""
    accelerator_type: str | None = None
    """Kind of GPU to train on, as Ray names it: A10G, A100, H100. None: any."""
    workers_per_trial: int | None = None
    """Worker processes of one trial (data parallel). None: one for each GPU, and 1 on the CPU."""
    concurrent_trials: int = 1
    """How many trials run at the same time."""
    seed: int = DEFAULT_SEED
    """Seed of the data split, of the sampler and of training."""
    finalists: int | None = None
    """How many of the best trials whose weights were kept are trained again with other seeds before one is called the
    best. None: one in five, at most 3."""
    finalist_seeds: int = 2
    """How many other seeds each finalist is trained with."""
    keep_checkpoints: int = 3
    """How many trials keep their weights, best first; your own settings and the best model always do."""
    disk_budget: str | None = None
    """Most disk that all trials may take, as 200GB; fewer checkpoints are kept to stay below it. None: the free space.
    """
    price_per_hour: float | None = None
    """Price for an hour of all machines, in any currency; --dry_run prints the total. None: no price is printed."""
    replace_search: bool = False
    """Delete the search that the run directory holds, and begin anew."""
    resume: str | None = None
    """Continue the search in this run directory; with a larger --num_trials, extend a finished one. None: a new search.
    """
    submit: str | None = None
    """Run as a job of the Ray cluster with this dashboard, as http://HEAD:8265, and follow its log. None: run here."""
    dry_run: bool = False
    """Check everything, train a few steps, print the plan with memory, hours and cost, and stop."""

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
            (
                self.candidate_pool_size >= 0,
                f"candidate_pool_size >= 0 must hold, but got {self.candidate_pool_size}",
            ),
            (0 <= self.seed < 2**32, f"0 <= seed < 2**32 must hold, but got {self.seed}"),
            (0 <= self.guard_tolerance < 1, f"0 <= guard_tolerance < 1 must hold, but got {self.guard_tolerance}"),
            (
                bool(self.guard) or not self.guard_constraint,
                "guard_constraint needs a guard: name a BEIR folder or an mteb task with --guard",
            ),
            (_increasing_to_one(self.rungs), f"rungs must increase and end in 1.0, but got {self.rungs}"),
            ((self.price_per_hour or 0) >= 0, f"price_per_hour >= 0 must hold, but got {self.price_per_hour}"),
        )
        broken = [message for holds, message in rules if not holds]
        broken += self._location_problems()
        try:
            metric = self.objective
        except ValueError as error:
            return [*broken, str(error), *contradictions(self.arguments, workers=self.workers)]
        return broken + contradictions(self.arguments, workers=self.workers, metric=metric)

    def _location_problems(self) -> Iterator[str]:
        """URLs with secrets are refused before they are written down or sent anywhere, and names that no file has."""
        for name in (*LOCATIONS, *LOCAL_PATHS):
            value = getattr(self, name, None) or self.arguments.get(name) or ()
            for location in (value,) if isinstance(value, str) else value:
                if problem := url_problem(location) if is_url(location) else values.name_problem(location):
                    yield f"--{name} {problem}"

    @property
    def time_budget_seconds(self) -> float | None:
        """`time_budget` in seconds."""
        return None if self.time_budget is None else values.duration(self.time_budget)

    @property
    def disk_budget_bytes(self) -> float | None:
        """`disk_budget` in bytes."""
        return None if self.disk_budget is None else values.size(self.disk_budget)

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
        annotation=f"list[{annotation}]" if typing.get_origin(hint) is tuple else _QUANTITIES.get(name, annotation),
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
