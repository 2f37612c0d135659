"""Settings files that a search names, kept in its run directory: it goes on where they are not."""

from pathlib import Path
from typing import Any

from trainables.files import write_bytes
from tuner.request.config import SearchConfig
from tuner.request.values import name_problem
from tuner.run_dir.names import SETTINGS, SETTINGS_SUFFIXES, settings_name


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
    sound = {name: value for name, value in named.items() if value and not name_problem(value)}
    beside = {name: folder / value for name, value in sound.items() if not Path(value).exists()}
    return {**values, **{name: str(path) for name, path in beside.items() if path.is_file()}}


def _copy_of(value: Any) -> str | None:
    """Where in a run directory the copy of a settings file belongs; None where `value` names none."""
    if not isinstance(value, str) or Path(value).suffix not in SETTINGS_SUFFIXES or not Path(value).is_file():
        return None
    return f"{SETTINGS}/{settings_name(Path(value))}"


def _copy(file: Path, copy: Path) -> None:
    """A copy that a full disk has cut short is made anew."""
    content = file.read_bytes()
    if not copy.exists() or copy.read_bytes() != content:
        copy.parent.mkdir(exist_ok=True)
        write_bytes(copy, content)
