"""Settings files that a search names, kept in its run directory: it goes on where they are not."""

import hashlib
from pathlib import Path
from typing import Any

from tuner.request.config import SearchConfig

FOLDER = "settings"
_SUFFIXES = (".yaml", ".yml", ".json")


def keep(config: SearchConfig, run_dir: Path) -> SearchConfig:
    """Returns `config` with its settings files named from the run directory, where they are copied to.

    A copy is named by its content, and never changed.
    """
    space, deepspeed = (_kept(value, run_dir) for value in (config.search_space, config.arguments.get("deepspeed")))
    arguments = {**config.arguments, "deepspeed": deepspeed} if deepspeed else config.arguments
    return config.replace(search_space=space, arguments=arguments)


def found(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the `values` of a YAML file in `folder`, with settings files named that are there and not here."""
    named = {name: values[name] for name in ("search_space", "deepspeed") if isinstance(values.get(name), str)}
    beside = {name: folder / value for name, value in named.items() if value and not Path(value).exists()}
    return {**values, **{name: str(path) for name, path in beside.items() if path.is_file()}}


def _kept(value: Any, run_dir: Path) -> Any:
    if not isinstance(value, str) or Path(value).suffix not in _SUFFIXES or not Path(value).is_file():
        return value
    content = Path(value).read_bytes()
    copy = Path(FOLDER) / f"{hashlib.sha256(content).hexdigest()[:12]}{Path(value).suffix}"
    if not (run_dir / copy).exists():
        (run_dir / FOLDER).mkdir(exist_ok=True)
        (run_dir / copy).write_bytes(content)
    return copy.as_posix()
