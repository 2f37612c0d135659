"""Finds a search space by name, in a YAML file, or as ``module:function``."""

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import yaml

from search_spaces.context import Context, SearchSpace
from search_spaces.example import example
from search_spaces.m3 import m3

_SPACES: Mapping[str, SearchSpace] = {"m3": m3, "example": example}


def names() -> list[str]:
    """The names of the built-in spaces."""
    return sorted(_SPACES)


def load_search_space(name: str) -> SearchSpace:
    """Returns the space called `name`: a built-in name, a YAML file, or ``module:function``.

    A YAML file holds ``argument: {low: 1e-6, high: 3e-5, log: true}`` or ``argument: {choices: [2, 4, 8]}`` lines
    (``step`` and ``int: true`` as in Optuna's ``suggest_int``).

    Raises:
        ValueError: Nobody has that name, or the file or function is no search space.
    """
    if name in _SPACES:
        return _SPACES[name]
    if name.endswith((".yaml", ".yml")):
        return _from_yaml(Path(name))
    if ":" in name:
        return _from_module(name)
    raise ValueError(
        f"search_space must be one of {', '.join(names())}, a YAML file or module:function, but got {name!r}"
    )


def identity(name: str) -> str:
    """Returns what tells the space called `name` from others: its name, and the content of the file that it is in."""
    module = importlib.util.find_spec(name.partition(":")[0]) if ":" in name else None
    file = module.origin if module else name if name.endswith((".yaml", ".yml")) else None
    if file is None:
        return name
    shown = name if module else "a YAML file"  # wherever it lies
    return f"{shown} of content {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]}"


def _from_module(name: str) -> SearchSpace:
    module, _, function = name.partition(":")
    try:
        space = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"search_space {name!r} cannot be imported: {error}") from error
    if not callable(space):
        raise ValueError(f"search_space {name!r} must be a function of (trial, context), but is {space!r}")
    return space  # type: ignore[no-any-return]


def _from_yaml(path: Path) -> SearchSpace:
    try:
        entries = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"search_space {path} cannot be read: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise ValueError(
            f"search_space {path} must hold `argument: {{low: ..., high: ...}}` lines, but holds {entries!r}"
        )
    problems = [f"{path}: {problem}" for name, entry in entries.items() for problem in _entry_problems(name, entry)]
    if problems:
        raise ValueError("\n".join(problems))
    return lambda trial, _context: {name: _suggest(trial, name, entry) for name, entry in entries.items()}


def _entry_problems(name: str, entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return [f"{name} must be {{low, high}} or {{choices}}, but is {entry!r}"]
    if "choices" in entry:
        return (
            []
            if entry["choices"] and isinstance(entry["choices"], list)
            else [f"{name}: choices must be a list of values"]
        )
    try:
        low, high = float(entry["low"]), float(entry["high"])
    except (KeyError, TypeError, ValueError):
        return [f"{name}: low and high must be numbers, but got low={entry.get('low')!r}, high={entry.get('high')!r}"]
    if low > high or (entry.get("log") and low <= 0):
        return [f"{name}: {'0 < ' if entry.get('log') else ''}low <= high must hold, but got low={low}, high={high}"]
    return []


def _suggest(trial: optuna.Trial, name: str, entry: Mapping[str, Any]) -> Any:
    if "choices" in entry:
        return trial.suggest_categorical(name, entry["choices"])
    low, high, log = float(entry["low"]), float(entry["high"]), bool(entry.get("log"))
    if entry.get("int"):
        return trial.suggest_int(name, int(low), int(high), step=int(entry.get("step", 1)), log=log)
    return trial.suggest_float(name, low, high, step=entry.get("step"), log=log)


def suggest(space: SearchSpace, trial: optuna.Trial, context: Context) -> dict[str, Any]:
    """Returns what `space` suggests for `trial`, checked to be ``{argument name: plain value}``."""
    values = space(trial, context)
    if not isinstance(values, dict):
        raise ValueError(f"a search space must return {{argument: value}}, but returned {values!r}")
    return values
