"""From a request to everything a search needs, checked before anything expensive starts."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from search_spaces import Context, SearchSpace
from trainables.config import DEFAULT_LENGTHS
from trainables.deepspeed_config import DS_STAGE0, check_deepspeed
from trainables.names import DATA
from tuner.data import dataset as data
from tuner.data import guard_data
from tuner.data.inputs import local_copy
from tuner.data.models import model_here
from tuner.data.sources import NO_SUCH_DATA
from tuner.errors import RequestError
from tuner.planning.adapters import check_adapters
from tuner.planning.caches import can_be_written
from tuner.planning.conventions import other_conventions
from tuner.planning.gpus import missing_gpus
from tuner.planning.lengths import say_lengths
from tuner.planning.limits import NO_SCORES, check_limits, fitting_lengths, limits_of
from tuner.planning.space import find_space, rehearse
from tuner.request.arguments import searchable_numbers, upstream_arguments
from tuner.request.config import LOCAL_PATHS, SECRETS, SearchConfig
from tuner.request.taken_over import taken_over
from tuner.run_dir.names import GUARDS, MANIFEST
from tuner.run_dir.object_storage import is_url
from tuner.schedule.disk import fit_to_disk, stored_dtype, token_bytes, weights_bytes
from tuner.study.claim import check_claim, facts
from tuner.study.lessons import Lesson, read_lessons
from tuner.study.pruners import pruner_names
from tuner.study.samplers import sampler_names

_BUDGETS = ("max_steps", "warmup_steps")
_TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",), "wandb": ("wandb",)}
"""What ``--report_to`` names -> packages of which one is needed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request that was checked: what is searched, on which data, from which model."""

    config: SearchConfig
    run_dir: Path
    dataset: data.Dataset
    space: SearchSpace
    context: Context
    guards: tuple[str, ...]
    """`--guard` as workers name it: copies of BEIR folders, and names of mteb tasks."""
    arguments: Mapping[str, Any]
    """What holds for every trial: the user's arguments, upstream's numbers where the user gave none."""
    weights_bytes: int
    """Size of the base model's weights, and of each checkpoint."""
    token_bytes: int
    """The most that the token ids of the corpus take on disk."""
    lessons: Sequence[Lesson] = ()
    """What `--warm_start` has found; a search that is resumed has them in its study."""
    warnings: list[str] = field(default_factory=list)
    """What is done otherwise than asked, one line each."""
    notes: list[str] = field(default_factory=list)
    """What else is good to know of model and texts."""


def make_plan(config: SearchConfig, run_dir: Path, say: Callable[[str], None], *, scratch: Path | None = None) -> Plan:
    """Checks `config`, finds its model, and prepares its data under `run_dir`.

    Args:
        config: The request; the embedded example's own settings already filled in.
        run_dir: The run directory; it exists.
        say: Told what is being done, a line each.
        scratch: Where data are prepared in place of the run directory.

    Raises:
        RequestError: Something is wrong; everything that can be found at once is told at once.
    """
    space = _check_names(config)
    lessons = [] if config.resume else read_lessons(config.warm_start)
    arguments, warnings = _as_trained(config.arguments)
    say(f"checking {', '.join(map(str, arguments['train_data']))}")
    data_folder = (scratch or run_dir) / DATA
    found = _look(config, run_dir, space, arguments, data_folder)
    guards = guard_data.prepare(config.guard, data_folder / GUARDS, resumed=bool(config.resume))
    weights = weights_bytes(Path(found.model))
    longest = found.arguments.get("passage_max_len") or DEFAULT_LENGTHS["passage_max_len"]
    tokens = token_bytes(Path(found.dataset.eval_data), longest)
    fitting, lowered = fit_to_disk(config, weights, run_dir, tokens)
    others = [*found.warnings, *found.dataset.manifest["warnings"], *_of_two_objectives(config), *lowered]
    return Plan(
        config=fitting,
        run_dir=run_dir,
        dataset=found.dataset,
        space=space,
        context=found.context,
        guards=guards,
        arguments=_of_every_trial(found),
        weights_bytes=weights,
        token_bytes=tokens,
        lessons=lessons,
        warnings=[*warnings, *others],
        notes=[
            *_precision(Path(found.model), config.model_name_or_path),
            *say_lengths(Path(found.model), found.dataset.train_data, found.arguments),
        ],
    )


def _as_trained(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The user's arguments as trials can take them, and what is done instead of what was asked."""
    arguments, warnings = taken_over(given)
    arguments = _absolute(_with_deepspeed_config(arguments, warnings))
    return _without_none_prefix(arguments, warnings), warnings


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What there is to search over: data in their place, and a model that they fit."""

    dataset: data.Dataset
    model: str
    arguments: Mapping[str, Any]
    """The user's, with lengths that the model can take."""
    context: Context
    warnings: Sequence[str]


def _look(
    config: SearchConfig, run_dir: Path, space: SearchSpace, arguments: Mapping[str, Any], data_folder: Path
) -> _Found:
    """Prepares the data beside those that are there, which change only when nothing is refused."""
    with _beside(data_folder) as folder:
        dataset, model = _data_and_model(config, arguments, folder)
        limits = limits_of(Path(model), config, dataset)
        lengths, said = fitting_lengths(limits.positions, arguments)
        arguments = {**arguments, **lengths}
        context, reached = _context(config, space, arguments, dataset)
        warnings = [*said, *other_conventions(Path(model), config.arguments, reached)]
        warnings += check_limits(limits, arguments, reached, space_name(config))
        check_adapters(arguments, reached, Path(model))
        if config.resume:
            check_claim(facts(config, dataset), run_dir, config.storage, config.study_name)
        dataset = _in_place(dataset, data_folder)
    return _Found(dataset=dataset, model=model, arguments=arguments, context=context, warnings=warnings)


def _precision(model: Path, name: str) -> list[str]:
    dtype = stored_dtype(model)
    if "16" not in dtype:
        return []
    return [f"--model_name_or_path {name}: its weights are in {dtype}; they are trained, and written, in float32"]


def _of_every_trial(found: _Found) -> dict[str, Any]:
    """Arguments that hold for every trial; budgets are counted in examples, and secrets go nowhere."""
    arguments = {name: value for name, value in found.arguments.items() if name not in (*_BUDGETS, *SECRETS)}
    here = {"model_name_or_path": found.model, "train_data": list(found.dataset.train_data)}
    return {**arguments, **here, **found.context.start}


def space_name(config: SearchConfig) -> str:
    """Returns what ``--search_space`` names, or would."""
    return config.search_space or ("m3_lora" if config.arguments.get("use_lora") else "m3")


def _of_two_objectives(config: SearchConfig) -> Iterator[str]:
    if not config.objective.is_pareto:
        return
    yield (
        f"--metric {config.metric}: Optuna's pruners compare one value, so no trial is pruned; trials are ranked "
        "by the mean of the two, and the report shows the front"
    )
    if config.patience is not None:
        yield f"--patience {config.patience}: it is counted for one objective, so it ends no search of two"


def _check_names(config: SearchConfig) -> SearchSpace:
    problems = []
    if not config.arguments.get("train_data"):
        problems.append("--train_data is missing: one or more .jsonl files or folders with query, pos and neg")
    for flag, value, known in (
        ("sampler", config.sampler, sampler_names()),
        ("pruner", config.pruner, pruner_names()),
    ):
        if value not in known:
            problems.append(f"--{flag} must be one of {', '.join(known)}, but got {value!r}")
    if config.objective.heads != {"dense"} and not config.arguments.get("unified_finetuning"):
        problems.append(f"--metric {config.metric}: only the dense head is trained; add --unified_finetuning True")
    problems += _missing_trackers(config.arguments.get("report_to"))
    problems += missing_gpus(config)
    cache = config.arguments.get("cache_path")
    if cache is not None and not can_be_written(Path(cache)):
        problems.append(f"--cache_path {cache}: cannot be written; name a folder of yours, or leave it out")
    try:
        space = find_space(space_name(config))
    except ValueError as error:
        problems.extend(f"--search_space: {line}" for line in str(error).splitlines())
    if problems:  # of data, only what takes no time is looked at for a request that is refused anyway
        raise RequestError([*problems, *_missing_data(config)])
    return space


def _missing_data(config: SearchConfig) -> Iterator[str]:
    for path in map(str, config.arguments.get("train_data") or ()):
        if not is_url(path) and not Path(path).exists():
            yield f"{path}: {NO_SUCH_DATA}"


def _missing_trackers(report_to: str | list[str] | None) -> Iterator[str]:
    """One line for each tracker whose package is not installed; of others than these, transformers knows."""
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        packages = _TRACKERS.get(name, ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            yield f"--report_to {name}: its package is not installed; pip install {name}, or leave the flag out"


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder inside of `folder` to prepare data in: what a refused search had before is left as it is.

    Its name starts with a dot, so that it is not brought to object storage.
    """
    fresh = folder / ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()  # where it holds nothing


def _in_place(dataset: data.Dataset, folder: Path) -> data.Dataset:
    """The same data in `folder`, which the search works with."""
    return dataset if Path(dataset.eval_data).parent == folder.resolve() else data.take_over(dataset, folder)


def _data_and_model(config: SearchConfig, arguments: Mapping[str, Any], folder: Path) -> tuple[data.Dataset, str]:
    """Both are looked at before either is refused; nothing is downloaded for data that is refused."""
    problems: list[str] = []
    dataset, model = None, config.model_name_or_path
    try:
        dataset = _dataset(config, arguments["train_data"], folder)
    except RequestError as error:
        problems.extend(error.findings)
    if dataset is not None and arguments.get("knowledge_distillation") and not dataset.has_scores:
        problems.append(f"{NO_SCORES}; or drop the flag")
    if not problems or Path(model).is_dir():
        try:
            model = model_here(model, cache_dir=arguments.get("cache_dir"), token=arguments.get("token"))
        except RequestError as error:
            problems.extend(error.findings)
    if problems or dataset is None:
        raise RequestError(problems)
    return dataset, model


def _dataset(config: SearchConfig, train_data: Sequence[str], folder: Path) -> data.Dataset:
    """The data as it is now, prepared in `folder`; a search whose files are gone goes on with what lies above it."""
    named = [*train_data, *([config.eval_data] if config.eval_data else [])]
    gone = not all(is_url(str(path)) or Path(path).exists() for path in named)
    if config.resume and gone and (folder.parent / MANIFEST).exists():
        return data.load(folder.parent)
    here = [local_copy(str(path)) for path in named]
    held_out = here[-1] if config.eval_data else None
    return data.prepare(here[: len(train_data)], folder=folder, eval_data=held_out, seed=config.seed)


def _with_deepspeed_config(arguments: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """FlagEmbedding's stage-0 file is often named and rarely there (its package lacks it): we carry its settings."""
    path = arguments.get("deepspeed")
    if not isinstance(path, str):
        return arguments
    if Path(path).is_file():
        _refuse_unsupported(path)
        return arguments
    if Path(path).name != "ds_stage0.json":
        raise RequestError(
            [f"--deepspeed {path}: there is no such file; give the path of a DeepSpeed JSON configuration"]
        )
    warnings.append(f"--deepspeed {path}: no such file; FlagEmbedding's published stage-0 settings are used")
    return {**arguments, "deepspeed": str(DS_STAGE0)}


def _without_none_prefix(arguments: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """FlagEmbedding's same-dataset batches put the word None before every query that has no instruction."""
    name = "query_instruction_for_retrieval"
    if not arguments.get("same_dataset_within_batch") or arguments.get(name) is not None:
        return arguments
    warnings.append(
        f"--same_dataset_within_batch without --{name}: FlagEmbedding would train on queries that begin with "
        "'None'; an empty instruction is used, which trains on the queries as they are"
    )
    return {**arguments, name: ""}


def _refuse_unsupported(path: str) -> None:
    try:
        check_deepspeed(path)
    except ValueError as error:
        raise RequestError([f"--deepspeed {path}: {error}"]) from error


def _absolute(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Paths as they are from anywhere: the workers stand in another directory."""
    paths = {name: arguments[name] for name in LOCAL_PATHS if isinstance(arguments.get(name), str)}
    return {**arguments, **{name: str(Path(path).resolve()) for name, path in paths.items()}}


def _context(
    config: SearchConfig, space: SearchSpace, arguments: Mapping[str, Any], dataset: data.Dataset
) -> tuple[Context, dict[str, list[Any]]]:
    """What `space` may know, the user's own value of every argument that it varies among it, and what it reaches."""
    rows = dataset.rows_used(arguments)
    start = searchable_numbers(arguments, rows=rows, workers=config.workers)
    context = Context(rows=rows, negatives=dataset.negatives, start=start)
    called, known = space_name(config), upstream_arguments()
    reached = rehearse(called, space, context)
    others = [known[name] for name in reached.keys() - start.keys() if name in known]
    own = {argument.name: arguments.get(argument.name, argument.default) for argument in others}
    given = {name: value for name, value in own.items() if value is not None or None in reached[name]}
    context = replace(context, start={**given, **start})
    # a search that an earlier version began with such a space goes on: its trial 1 is what it is
    unset = set() if config.resume else own.keys() - given.keys()
    return context, rehearse(called, space, context, unset=unset)
