"""What a search was asked, in its run directory: config.yaml, and the settings files that the request names.

A search goes on where the settings files are not.
"""

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from trainables.files import write_bytes, write_text
from tuner.request.command_line import code_flags
from tuner.request.config import SECRETS, SearchConfig, new_run_dir
from tuner.request.storage_url import HIDDEN, absolute, redacted
from tuner.run_dir.object_storage import is_url
from tuner.run_dir.written import CONFIG_FILE

FOLDER = "settings"
_SUFFIXES = (".yaml", ".yml", ".json")
_NO_REQUEST = (
    "run_dir", "output_dir", "overwrite_output_dir", "address", "submit", "price_per_hour", "disk_budget",
    "keep_checkpoints",
)  # fmt: skip
"""What does not make another request: where the search is kept and runs, and what that may take."""


def keep(config: SearchConfig, run_dir: Path) -> SearchConfig:
    """Returns `config` with its settings files named from the run directory, where they are copied to.

    A copy is named by its content, and never changed.
    """
    for value in (config.search_space, config.arguments.get("deepspeed")):
        if value and (copy := _copy_of(value)):
            _copy(Path(value), run_dir / copy)
    return as_kept(config)


def as_kept(config: SearchConfig) -> SearchConfig:
    """Returns `config` with its settings files named as `keep` names them; nothing is copied."""
    named = (config.search_space, config.arguments.get("deepspeed"))
    space, deepspeed = (_copy_of(value) or value for value in named)
    arguments = {**config.arguments, "deepspeed": deepspeed} if deepspeed else config.arguments
    return config.replace(search_space=space, arguments=arguments)


def found(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the `values` of a YAML file in `folder`, with settings files named that are there and not here."""
    named = {name: values[name] for name in ("search_space", "deepspeed") if isinstance(values.get(name), str)}
    beside = {name: folder / value for name, value in named.items() if value and not Path(value).exists()}
    return {**values, **{name: str(path) for name, path in beside.items() if path.is_file()}}


def _copy_of(value: Any) -> str | None:
    """Where in a run directory the copy of a settings file belongs; None where `value` names none."""
    if not isinstance(value, str) or Path(value).suffix not in _SUFFIXES or not Path(value).is_file():
        return None
    content = Path(value).read_bytes()
    return f"{FOLDER}/{hashlib.sha256(content).hexdigest()[:12]}{Path(value).suffix}"


def _copy(file: Path, copy: Path) -> None:
    """A copy that a full disk has cut short is made anew."""
    content = file.read_bytes()
    if not copy.exists() or copy.read_bytes() != content:
        copy.parent.mkdir(exist_ok=True)
        write_bytes(copy, content)


def write_config(config: SearchConfig, run_dir: Path, argv: Sequence[str] | None) -> None:
    """Writes what was asked, resolved and without secrets, to RUN/config.yaml.

    Args:
        config: The request, checked.
        run_dir: Its run directory.
        argv: The command line that it came from; None: it came from Python.
    """
    values = _record(config)
    path = run_dir / CONFIG_FILE
    earlier = yaml.safe_load(path.read_text("utf-8")) if config.resume and path.exists() else {}
    command = earlier.pop("command", None)
    if command is None or values != earlier:
        again = _anew(config, run_dir) if argv is None or config.resume else _without_secrets(argv)
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


def _anew(config: SearchConfig, run_dir: Path) -> list[str]:
    """Flags that search anew what no one command line has asked for: what config.yaml holds."""
    home = _shown_home(config, run_dir)
    path, mark, options = home.partition("?") if is_url(home) else (home, "", "")
    flags = ["--config", f"{home}/{CONFIG_FILE}", "--run_dir", f"{path.rstrip('/')}-again{mark}{options}"]
    flags += code_flags(config)
    return flags if config.storage is None else [*flags, "--study_name", f"{run_dir.name}-again"]


def _shown_home(config: SearchConfig, run_dir: Path) -> str:
    """The run directory as it is named from where the search was started, as its data are."""
    named = config.resume or new_run_dir(config, run_dir.name)
    if is_url(named):
        return named
    home, here = run_dir.resolve(), Path.cwd()
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
