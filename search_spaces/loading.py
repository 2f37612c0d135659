"""Finds a search space by name, in a YAML file, or as ``module:function``."""

import hashlib
import importlib
import importlib.util
import math
import reprlib
from collections.abc import Iterator, Mapping
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
    (``step`` and ``int: true`` as in Optuna's ``suggest_int``). The user's own value is added where it is not in it.

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
            f"search_space {path} must hold `argument: {{low: ..., high: ...}}` lines, but holds {_repr(entries)}"
        )
    problems = [f"{path}: {problem}" for name, entry in entries.items() for problem in _entry_problems(name, entry)]
    if problems:
        raise ValueError("\n".join(problems))
    return lambda trial, context: {name: _suggest(trial, context, name, entry) for name, entry in entries.items()}


def _entry_problems(name: str, entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return [f"{name} must be {{low, high}} or {{choices}}, but is {_repr(entry)}"]
    if "choices" in entry:
        return (
            []
            if entry["choices"] and isinstance(entry["choices"], list)
            else [f"{name}: choices must be a list of values"]
        )
    try:
        low, high, step = float(entry["low"]), float(entry["high"]), float(entry.get("step", 1))
    except (KeyError, TypeError, ValueError):
        return [
            f"{name}: low, high and step must be numbers, but got low={_repr(entry.get('low'))}, "
            f"high={_repr(entry.get('high'))}, step={_repr(entry.get('step'))}"
        ]
    return [f"{name}: {problem}" for problem in _range_problems(entry, low, high, step)]


def _repr(value: Any) -> str:
    """A short form: YAML's aliases make values of gigabytes from a few lines."""
    shortened = reprlib.Repr()
    shortened.maxlevel, shortened.maxother = 3, 60
    return shortened.repr(value)


def _range_problems(entry: Mapping[str, Any], low: float, high: float, step: float) -> Iterator[str]:
    is_log, is_int = bool(entry.get("log")), bool(entry.get("int"))
    if not low <= high or (is_log and low <= 0):
        yield f"{'0 < ' if is_log else ''}low <= high must hold, but got low={low}, high={high}"
    if not step > 0:
        yield f"step > 0 must hold, but got step={step}"
    if is_log and "step" in entry:
        yield f"log and step exclude each other, but both are given (step={step}); drop one"
    if is_int and not (low.is_integer() and high.is_integer() and step.is_integer()):
        yield f"with int, low, high and step must be whole numbers, but got low={low}, high={high}, step={step}"


def _suggest(trial: optuna.Trial, context: Context, name: str, entry: Mapping[str, Any]) -> Any:
    """Suggests from what `entry` says, and the user's own value besides."""
    if "choices" in entry:
        own, choices = context.start.get(name), entry["choices"]
        return trial.suggest_categorical(name, choices if own is None or own in choices else [*choices, own])
    low, high = _bounds(context, name, entry)
    log, step = bool(entry.get("log")), float(entry["step"]) if "step" in entry else None
    if entry.get("int"):
        return trial.suggest_int(name, math.floor(low), math.ceil(high), step=int(step or 1), log=log)
    return trial.suggest_float(name, low, high, step=step, log=log)


def _bounds(context: Context, name: str, entry: Mapping[str, Any]) -> tuple[float, float]:
    """The range of `entry`, widened to hold the user's own value; by whole steps, where it has steps."""
    low, high = float(entry["low"]), float(entry["high"])
    wide_low, wide_high = context.bounds(name, low, high)
    if entry.get("log") and wide_low <= 0:
        raise ValueError(f"{name}: log has no place for your own value {wide_low}; drop log, or give another --{name}")
    if "step" not in entry:
        return wide_low, wide_high
    step = float(entry["step"])
    return low - _steps(low - wide_low, step) * step, high + _steps(wide_high - high, step) * step


def _steps(distance: float, step: float) -> int:
    return math.ceil(round(distance / step, 9))


def suggest(space: SearchSpace, trial: optuna.Trial, context: Context) -> dict[str, Any]:
    """Returns what `space` suggests for `trial`, checked to be ``{argument name: plain value}``."""
    values = space(trial, context)
    if not isinstance(values, dict):
        raise ValueError(f"a search space must return {{argument: value}}, but returned {values!r}")
    return values
