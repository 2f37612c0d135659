"""What a search was asked, as RUN/config.yaml holds it: written, read, and compared with another request."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from trainables.files import write_text
from tuner.request.command_line import code_flags
from tuner.request.config import SECRETS, SearchConfig, new_run_dir
from tuner.request.config_file import as_kept
from tuner.request.storage_url import HIDDEN, absolute, redacted
from tuner.run_dir.names import CONFIG_FILE
from tuner.run_dir.object_storage import is_url

_NO_REQUEST = (
    "run_dir", "output_dir", "overwrite_output_dir", "address", "submit", "price_per_hour", "disk_budget",
    "keep_checkpoints",
)  # fmt: skip
"""What does not make another request: where the search is kept and runs, and what that may take."""


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
