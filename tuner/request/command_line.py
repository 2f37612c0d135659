"""The command line: the flags of a fine-tuning command, and the search's own, into a `SearchConfig`."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tuner.errors import RequestError
from tuner.request import config_file as settings
from tuner.request.checks import accepted_arguments, unknown_argument
from tuner.request.config import EXAMPLE_DEFAULTS, SearchConfig
from tuner.request.flags import SHORT, build_parser, search_options
from tuner.request.values import name_problem
from tuner.run_dir.names import CONFIG_FILE, RESULT_FILE, SETTINGS
from tuner.run_dir.object_storage import is_url

_LAUNCHER = ("-m", "torchrun", "FlagEmbedding.finetune.embedder.encoder_only.m3")
_RAYS = "leave it out; Ray starts the workers and joins them"
_TORCHRUN = {
    "nproc_per_node": "leave it out where it is 1; for more, write --gpus_per_trial N, or --concurrent_trials N for N "
    "trials side by side",
    **dict.fromkeys(("nnodes", "node_rank", "master_addr", "master_port", "rdzv_backend", "rdzv_endpoint"), _RAYS),
    **dict.fromkeys(("rdzv_id", "standalone", "max_restarts"), _RAYS),
}
"""What of a torchrun line belongs to torchrun, and what to do with it."""
_OF_ONE_SEARCH = (
    "run_dir", "output_dir", "overwrite_output_dir", "resume", "replace_search", "dry_run", "submit", "study_name",
    "again", "warm_start",
)  # fmt: skip
"""What another search does not take over from one."""
_BOTH = "--again begins a new search, and --resume goes on with one, but both are given; leave one out"
_LONG = {short: name for name, short in SHORT.items()}


def parse(argv: Sequence[str]) -> SearchConfig:
    """Returns what the command line `argv` (without the program's name) asks for.

    Raises:
        RequestError: With every flag that nothing knows and every value that cannot be read or is out of range.
        SystemExit: ``--help`` was given (code 0, help printed).
    """
    namespace, unknown = build_parser().parse_known_args(list(argv))
    given = {name: value for name, value in vars(namespace).items() if value is not None}
    problems = list(dict.fromkeys(_unknown_flag(token) for token in _without_their_values(unknown)))
    problems += _two_run_dirs(given)
    file = given.pop("config", None)
    from_file = _read_yaml(file, problems, asked=given) if file else {}
    if "output_dir" in given:  # the run directory by another name
        from_file.pop("run_dir", None)
    run_dir = _named(given.get("resume", from_file.get("resume")))
    from_run = _read_run(run_dir, problems) if run_dir else {}
    problems += _code_of_a_run(f"--resume {run_dir}", from_run, asked={*from_file, *given})
    earlier = _named(given.get("again", from_file.get("again")))
    if earlier and run_dir:
        problems.append(_BOTH)
    from_earlier = _begun_again(earlier, problems, asked={*from_file, *given}) if earlier and not run_dir else {}
    values = _given({**from_earlier, **from_run, **from_file, **given, **_absolute(earlier)})
    return _configuration(values, problems)


def _two_run_dirs(given: Mapping[str, Any]) -> Iterator[str]:
    run_dir, output_dir = given.get("run_dir"), given.get("output_dir")
    if run_dir and output_dir and run_dir != output_dir:
        yield f"--run_dir {run_dir} and --output_dir {output_dir} both name the run directory; leave one of them out"


def resumed(config: SearchConfig) -> SearchConfig:
    """Returns what the run that `config` resumes, or begins again, was asked, and of `config` what is not a default.

    Raises:
        RequestError: The run has no config.yaml that can be read, or has not ended and is to begin again.
    """
    problems = [_BOTH] if config.resume and config.again else []
    values = {name: getattr(config, name) for name in search_options()}
    changed = {name: value for name, value in values.items() if value != getattr(SearchConfig, name)}
    given = {*config.arguments, *changed}
    if config.resume:
        run = _read_run(config.resume, problems)
        problems += _code_of_a_run(f"--resume {config.resume}", run, asked=given)
    else:
        run = _begun_again(str(config.again), problems, asked=given)
    before = _configuration({**_given(run), **changed, **_absolute(config.again)}, problems)
    return before.replace(arguments={**before.arguments, **config.arguments})


def code_flags(config: SearchConfig) -> list[str]:
    """Returns the flags by which `config` asks for code to run; a run directory alone does not bring them back."""
    trusted = ["--trust_remote_code"] if config.arguments.get("trust_remote_code") else []
    space = ["--search_space", str(config.search_space)] if _is_function(config.search_space) else []
    return [*trusted, *space]


def _is_function(search_space: Any) -> bool:
    return isinstance(search_space, str) and ":" in search_space and not search_space.endswith((".yaml", ".yml"))


def _code_of_a_run(source: str, values: Mapping[str, Any], *, asked: Collection[str]) -> list[str]:
    """Refuses code that only a run directory asks for: who may write there would run it as whoever resumes."""
    trusted, space = values.get("trust_remote_code"), values.get("search_space")
    problems = []
    if "trust_remote_code" not in asked and str(trusted).lower() not in ("none", "false", "no", "0", "off"):
        problems.append(
            f"{source}: it has trust_remote_code, so code of the model {values.get('model_name_or_path')} "
            "would run here; give --trust_remote_code again if you trust whoever can write there, or "
            "--trust_remote_code False"
        )
    if "search_space" not in asked and _is_function(space):
        problems.append(
            f"{source}: it has the search space {space}, a function of a module that would be imported "
            f"here; give --search_space {space} again if that is yours"
        )
    return problems


def _without_their_values(unknown: Sequence[str]) -> list[str]:
    """`unknown` without the value that follows a flag that is itself unknown."""
    return [
        t
        for before, t in zip(["", *unknown], unknown, strict=False)
        if t.startswith("--") or not before.startswith("--")
    ]


def _named(run: Any) -> str | None:
    """The run to `--resume` or begin `--again`; None for what names none in a YAML file, refused with all others."""
    if isinstance(run, bool) or not isinstance(run, str | int | float) or str(run).lower() == "none":
        return None
    return str(run)


def _begun_again(run_dir: str, problems: list[str], *, asked: Collection[str]) -> dict[str, Any]:
    """What another search takes over from the finished one in `run_dir`; its best settings are where it begins."""
    values = _read_run(run_dir, problems, flag="--again")
    problems += _code_of_a_run(f"--again {run_dir}", values, asked=asked)
    if values and not _local_file(f"{run_dir}/{RESULT_FILE}").is_file():
        problems.append(f"--again {run_dir}: its search has not ended (no result.json); --resume {run_dir} ends it")
    taken = {name: value for name, value in values.items() if name not in _OF_ONE_SEARCH}
    return {**taken, "warm_start": [_from_anywhere(run_dir)]}


def _absolute(again: str | None) -> dict[str, str]:
    return {"again": _from_anywhere(again)} if again else {}


def _from_anywhere(run_dir: str) -> str:
    """A run as it is called from anywhere: the new search is resumed from another directory, perhaps."""
    return run_dir if is_url(run_dir) else str(Path(run_dir).absolute())


def _read_run(run_dir: str, problems: list[str], *, flag: str = "--resume") -> dict[str, Any]:
    """What the run was asked; a search of the embedded example has its data written there as well."""
    path = f"{run_dir}/{CONFIG_FILE}"
    if problem := name_problem(run_dir):
        problems.append(f"{flag} {problem}")
        return {}
    if not is_url(path) and not Path(path).is_file():
        problems.append(f"{flag} {run_dir}: no search was begun there (no config.yaml); name its --run_dir")
        return {}
    values = _read_yaml(path, problems)
    if not problems and not values.get("train_data") and not values.get("model_name_or_path"):
        problems.append(
            f"{flag} {run_dir}: its config.yaml names neither data nor a model, as after a crash; put back a copy of "
            "it, or start a new --run_dir"
        )
    return values


def _local_file(path: str) -> Path:
    """`path`, or the copy here of a file in a run directory on object storage, with the settings files beside it."""
    if not is_url(path):
        return Path(path)
    from tuner.run_dir.store import open_run_dir

    run_dir, _, name = path.rpartition("/")
    store = open_run_dir(run_dir)
    store.pull([name, SETTINGS])
    return store.local / name


def _unknown_flag(token: str) -> str:
    name = token.split("=")[0].removeprefix("--")
    if token in _LAUNCHER:
        return (
            "Leave out `torchrun ... -m FlagEmbedding.finetune.embedder.encoder_only.m3`: python -m tuner.search "
            "takes its place"
        )
    if not token.startswith("--"):
        return f"{token!r} belongs to no flag; write --name value"
    if name.replace("-", "_") in _TORCHRUN:
        return f"--{name} is torchrun's: {_TORCHRUN[name.replace('-', '_')]}"
    own = [SHORT.get(option, option) for option in search_options()]
    return unknown_argument(name, [*own, "help", "help_all", "version"])


def _read_yaml(path: str, problems: list[str], asked: Collection[str] | None = None) -> dict[str, Any]:
    """The values of a YAML file; with `asked`, of one that a search wrote, or in storage, no code unless asked for."""
    try:
        file = _local_file(path)
        values = yaml.safe_load(file.read_text("utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(f"--config {path}: cannot be read as YAML: {error}")
        return {}
    if not isinstance(values, dict):
        problems.append(f"--config {path}: must hold `name: value` lines, but holds a {type(values).__name__}")
        return {}
    arguments = values.pop("arguments", None) or {}
    command = values.pop("command", None)  # config.yaml's record of the line it came from
    values = {_LONG.get(name, name): value for name, value in values.items()}
    values = {**arguments, **values}  # a seed among the arguments is not the search's
    known = {**accepted_arguments(), **search_options()}
    problems.extend(f"--config {path}: {_unknown_flag(f'--{name}')}" for name in values if name not in known)
    if asked is not None and (command is not None or is_url(path)):
        problems += _code_of_a_run(f"--config {path}", values, asked=asked)
    return settings.found({name: value for name, value in values.items() if name in known}, file.parent)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """`name:` alone in a file leaves the default."""
    return {name: value for name, value in values.items() if value is not None}


def _configuration(values: Mapping[str, Any], problems: list[str]) -> SearchConfig:
    own = {name: value for name, value in values.items() if name in search_options()}
    arguments = {name: value for name, value in values.items() if name not in search_options()}
    try:
        config = SearchConfig(arguments=arguments, **own)
        if config.is_example:
            config = SearchConfig(arguments=arguments, **{**EXAMPLE_DEFAULTS, **own})
    except RequestError as error:
        problems.extend(error.findings)
    if problems:
        raise RequestError(problems)
    return config
