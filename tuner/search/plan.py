"""From a request to everything a search needs, checked before anything expensive starts."""

import hashlib
import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from search_spaces import Context, SearchSpace, identity
from trainables.deepspeed_config import DS_STAGE0, check_deepspeed
from trainables.files import write_text
from trainables.scoring.measures import objectives
from tuner.data import dataset as data
from tuner.data import guard_data
from tuner.data.inputs import local_copy
from tuner.data.models import model_here
from tuner.data.sources import NO_SUCH_DATA
from tuner.errors import RequestError
from tuner.request.arguments import translated, upstream_arguments
from tuner.request.command_line import code_flags
from tuner.request.config import SECRETS, SearchConfig, new_run_dir
from tuner.request.config_file import as_kept
from tuner.request.storage_url import HIDDEN, absolute, redacted
from tuner.request.taken_over import taken_over
from tuner.run_dir.object_storage import is_url
from tuner.run_dir.written import CONFIG_FILE, MANIFEST
from tuner.schedule.disk import fit_to_disk, weights_bytes
from tuner.search.caches import can_be_written
from tuner.search.limits import check_limits, fitting_lengths, limits_of
from tuner.search.space import find_space, rehearse
from tuner.study.lessons import Lesson, read_lessons
from tuner.study.pruners import pruner_names
from tuner.study.samplers import sampler_names
from tuner.study.study import check_claim

DEFAULT_SPACE = "m3"
_SEARCHABLE = (
    "learning_rate",
    "temperature",
    "train_group_size",
    "per_device_train_batch_size",
    "weight_decay",
    "num_train_epochs",
    "max_grad_norm",
    "gradient_accumulation_steps",
)
_PATHS = ("deepspeed", "cache_dir", "cache_path")
_TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",), "wandb": ("wandb",)}
"""What ``--report_to`` names -> packages of which one is needed."""
_NO_REQUEST = (
    "run_dir", "output_dir", "overwrite_output_dir", "address", "submit", "price_per_hour", "disk_budget",
    "keep_checkpoints",
)  # fmt: skip
"""What does not make another request: where the search is kept and runs, and what that may take."""
_HARMLESS = re.compile(
    "train_data|model_name_or_path|seed|max_steps|warmup_steps|sub_batch_size|gradient_checkpointing|disable_tqdm|"
    "report_to|run_name|project|trackio_.*|.*token|push_to_hub.*|hub_.*|log(ging)?_.*|save_.*|eval_.*|do_.*|"
    "output_dir|cache_.*|resume_from_checkpoint|dataloader_(num_workers|p).*|ddp_timeout|debug|trust_remote_code|"
    "skip_memory_metrics|include_.*|load_best_model_at_end|metric_for_best_model|greater_is_better|use_cpu"
)
"""Arguments that no score depends on, or that other facts hold."""


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
    lessons: Sequence[Lesson] = ()
    """What `--warm_start` has found; a search that is resumed has them in its study."""
    warnings: list[str] = field(default_factory=list)
    """What is done otherwise than asked, one line each."""


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
    warnings: list[str] = []
    space = _check_names(config)
    lessons = [] if config.resume else read_lessons(config.warm_start)
    arguments, instead = taken_over(config.arguments)
    warnings += instead
    arguments = _absolute(_with_deepspeed_config(arguments, warnings))
    arguments = _without_none_prefix(arguments, warnings)
    say(f"checking {', '.join(map(str, arguments['train_data']))}")
    data_folder = (scratch or run_dir) / "data"
    with _beside(data_folder) as folder:
        dataset, model = _data_and_model(config, arguments, folder)
        limits = limits_of(Path(model), config, dataset)
        lowered_lengths, said = fitting_lengths(limits.positions, arguments)
        arguments |= lowered_lengths
        context, reached = _context(config, space, arguments, dataset)
        warnings += [*said, *check_limits(limits, arguments, reached, config.search_space or DEFAULT_SPACE)]
        if config.resume:
            check_claim(facts(config, dataset), run_dir, config.storage, config.study_name)
        dataset = _in_place(dataset, data_folder)
    guards = guard_data.prepare(config.guard, data_folder / "guards", resumed=bool(config.resume))
    warnings += dataset.manifest["warnings"]
    if len(config.objectives) > 1:
        warnings.append(
            f"--metric {config.metric}: Optuna's pruners compare one value, so no trial is pruned; trials are ranked "
            "by the mean of the two, and the report shows the front"
        )
    weights = weights_bytes(Path(model))
    config, lowered = fit_to_disk(config, weights, run_dir)
    warnings += lowered
    arguments |= {"model_name_or_path": model, "train_data": list(dataset.train_data)}
    arguments = {
        name: value for name, value in arguments.items() if name not in ("max_steps", "warmup_steps", *SECRETS)
    }
    return Plan(
        config=config,
        run_dir=run_dir,
        dataset=dataset,
        space=space,
        context=context,
        guards=guards,
        arguments={**arguments, **context.start},
        weights_bytes=weights,
        lessons=lessons,
        warnings=warnings,
    )


def facts(config: SearchConfig, dataset: data.Dataset) -> dict[str, Any]:
    """What a search is over, and what its trials can be compared by: it goes on over nothing else."""
    return {
        "data_hash": dataset.hash,
        "search_space": identity(str(config.search_space)),
        "metric": config.metric,
        "model": config.model_name_or_path,
        "rungs": list(config.rungs),
        "seed": config.seed,
        "workers": config.workers,
        "arguments": {**_decisive(config.arguments), **_numbers(config.arguments, dataset.rows)},
    }


def _decisive(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The user's arguments that change what a trial computes, where they are not upstream's defaults."""
    known = upstream_arguments()
    given = {
        name: _content(value)
        for name, value in translated(arguments).items()
        if not _HARMLESS.fullmatch(name) and (name not in known or value != known[name].default)
    }
    return dict(json.loads(json.dumps(given, default=str)))


def _content(value: Any) -> Any:
    """What tells a value from others: of a settings file the content, wherever it lies."""
    if not isinstance(value, str) or not value.endswith(".json"):
        return value
    path = Path(value) if Path(value).is_file() else DS_STAGE0
    return f"a file of content {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def honoured(arguments: Mapping[str, Any], *, gpu: bool) -> tuple[dict[str, Any], list[str]]:
    """Returns `arguments` as a machine with or without a GPU can honour them, and what is done instead."""
    if gpu:
        return dict(arguments), []
    warnings = []
    kept = dict(arguments)
    for name in ("fp16", "bf16", "tf32", "use_liger_kernel"):
        if kept.pop(name, False):
            warnings.append(f"--{name} needs a GPU, and none is used here: training in float32 instead")
    return {**kept, "dataloader_pin_memory": False, "use_cpu": True}, warnings


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
    heads = {name.partition(".")[0] for part in objectives(config.metric) for name in part}
    if heads != {"dense"} and not config.arguments.get("unified_finetuning"):
        problems.append(f"--metric {config.metric}: only the dense head is trained; add --unified_finetuning True")
    problems += _missing_trackers(config.arguments.get("report_to"))
    cache = config.arguments.get("cache_path")
    if cache is not None and not can_be_written(Path(cache)):
        problems.append(f"--cache_path {cache}: cannot be written; name a folder of yours, or leave it out")
    try:
        space = find_space(config.search_space or DEFAULT_SPACE)
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
        problems.append(
            "--knowledge_distillation needs pos_scores and neg_scores in every row; add them or drop the flag"
        )
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
    paths = {name: arguments[name] for name in _PATHS if isinstance(arguments.get(name), str)}
    return {**arguments, **{name: str(Path(path).resolve()) for name, path in paths.items()}}


def _numbers(arguments: Mapping[str, Any], rows: int) -> dict[str, int | float]:
    """The numbers that a space may vary: the user's, else upstream's defaults.

    Budgets are counted in examples, so that every batch size gets the same: `max_steps` becomes epochs, and a number of
    warm-up steps a share.
    """
    numbers = {name: arguments.get(name, _default(name)) for name in _SEARCHABLE}
    batch = numbers["per_device_train_batch_size"] * numbers["gradient_accumulation_steps"]
    if (arguments.get("max_steps") or -1) > 0:
        numbers["num_train_epochs"] = arguments["max_steps"] * batch / rows
    warmup = arguments.get("warmup_steps") or 0
    share = warmup if warmup < 1 else min(0.5, warmup * batch / (rows * numbers["num_train_epochs"]))
    return {**numbers, "warmup_ratio": arguments.get("warmup_ratio", share)}


def _context(
    config: SearchConfig, space: SearchSpace, arguments: Mapping[str, Any], dataset: data.Dataset
) -> tuple[Context, dict[str, list[Any]]]:
    """What `space` may know, the user's own value of every argument that it varies among it, and what it reaches."""
    start = _numbers(arguments, dataset.rows)
    context = Context(rows=dataset.rows, negatives=dataset.negatives, start=start)
    called, known = config.search_space or DEFAULT_SPACE, upstream_arguments()
    others = [known[name] for name in rehearse(called, space, context).keys() - start.keys() if name in known]
    own = {argument.name: arguments.get(argument.name, argument.default) for argument in others}
    given = {name: value for name, value in own.items() if value is not None}
    context = replace(context, start={**given, **start})
    return context, rehearse(called, space, context)


def _default(name: str) -> Any:
    return upstream_arguments()[name].default


def write_config(plan: Plan, argv: Sequence[str] | None) -> None:
    """Writes what was asked, resolved and without secrets, to RUN/config.yaml.

    Args:
        plan: The request, checked.
        argv: The command line that it came from; None: it came from Python.
    """
    values = _record(plan.config)
    path = plan.run_dir / CONFIG_FILE
    earlier = yaml.safe_load(path.read_text("utf-8")) if plan.config.resume and path.exists() else {}
    command = earlier.pop("command", None)
    if command is None or values != earlier:
        again = _again(plan) if argv is None or plan.config.resume else _without_secrets(argv)
        command = shlex.join(["python", "-m", "tuner.search", *again])
    text = yaml.safe_dump({**values, "command": command}, sort_keys=False, allow_unicode=True)
    write_text(path, text)


def changes(config: SearchConfig, run_dir: Path) -> list[str] | None:
    """Compares `config` with what the search in a run directory was asked: the same request goes on with it.

    Where and with how much disk or money a search runs makes no other request of it.

    Args:
        config: The request, the embedded example's own settings already filled in.
        run_dir: Its run directory.

    Returns:
        A line for each difference; None where the directory does not say what was asked.
    """
    try:
        before = read_config(run_dir)
    except (OSError, TypeError, ValueError, AttributeError, yaml.YAMLError):
        return None
    old, new = _asked(before), _asked(as_kept(config))
    if config.study_name is None:
        new["study_name"] = old["study_name"]
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return [f"{name} was {old.get(name)} and is {new.get(name)}" for name in names]


def read_config(run_dir: Path) -> SearchConfig:
    """Returns what RUN/config.yaml holds."""
    return SearchConfig.from_dict(yaml.safe_load((run_dir / CONFIG_FILE).read_text("utf-8")))


def _asked(config: SearchConfig) -> dict[str, Any]:
    """What makes a request, by name: FlagEmbedding's arguments beside the search's own."""
    values = _record(config)
    arguments = {f"--{name}": value for name, value in values.pop("arguments").items() if name not in _NO_REQUEST}
    own = {name: value for name, value in values.items() if name not in _NO_REQUEST}
    plain: dict[str, Any] = json.loads(json.dumps({**arguments, **own}, default=str))
    return plain


def _record(config: SearchConfig) -> dict[str, Any]:
    """What config.yaml holds of a request."""
    values = config.to_dict()
    values["arguments"] = {name: value for name, value in values["arguments"].items() if name not in SECRETS}
    storage = None if config.storage is None else redacted(absolute(config.storage))
    return values | {"resume": None, "dry_run": False, "replace_search": False, "storage": storage}


def _again(plan: Plan) -> list[str]:
    """Flags that search anew what no one command line has asked for: what config.yaml holds."""
    home = _shown_home(plan)
    path, mark, options = home.partition("?") if is_url(home) else (home, "", "")
    flags = ["--config", f"{home}/{CONFIG_FILE}", "--run_dir", f"{path.rstrip('/')}-again{mark}{options}"]
    flags += code_flags(plan.config)
    return flags if plan.config.storage is None else [*flags, "--study_name", f"{plan.run_dir.name}-again"]


def _shown_home(plan: Plan) -> str:
    """The run directory as it is named from where the search was started, as its data are."""
    named = plan.config.resume or new_run_dir(plan.config, plan.run_dir.name)
    if is_url(named):
        return named
    home, here = plan.run_dir.resolve(), Path.cwd()
    return str(home.relative_to(here) if home.is_relative_to(here) else home)


def _without_secrets(argv: Sequence[str]) -> list[str]:
    shown, hide = [], False
    for token in argv:
        flag, equals, _ = token.partition("=")
        is_secret = flag.lstrip("-").replace("-", "_") in SECRETS
        value = f"{flag}={HIDDEN}" if is_secret and equals else token
        shown.append(HIDDEN if hide else redacted(value) if "://" in value else value)
        hide = is_secret and not equals
    return shown
