"""Finds a search space by name, in a YAML file, or as ``module:function``."""

import hashlib
import importlib
import importlib.util
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import yaml

from search_spaces.context import Context, SearchSpace
from search_spaces.example import example
from search_spaces.m3 import m3
from search_spaces.m3_kd import m3_kd
from search_spaces.m3_lora import m3_lora

_SPACES: Mapping[str, SearchSpace] = {"m3": m3, "m3_kd": m3_kd, "m3_lora": m3_lora, "example": example}


def names() -> list[str]:
    """The names of the built-in spaces."""
    return sorted(_SPACES)


Read = Callable[[str, Any], Any]
"""Returns the value of an argument, by its name, in the argument's own type.

Raises:
    ValueError: There is no such argument, or the value cannot be read as its type.
"""


def _as_it_is(_: str, value: Any) -> Any:
    return value


def load_search_space(name: str, read: Read = _as_it_is) -> SearchSpace:
    """Returns the space called `name`: a built-in name, a YAML file, or ``module:function``.

    A YAML file holds ``argument: {low: 1e-6, high: 3e-5, log: true}`` or ``argument: {choices: [2, 4, 8]}`` lines
    (``step`` and ``int: true`` as in Optuna's ``suggest_int``). The user's own value is added where it is not in it.

    Args:
        name: What ``--search_space`` names.
        read: Reads the values of a YAML file, which knows no types: to YAML 1.1, ``1e-5`` is text.

    Raises:
        ValueError: Nobody has that name, or the file or function is no search space.
    """
    if name in _SPACES:
        return _SPACES[name]
    if name.endswith((".yaml", ".yml")):
        return _from_yaml(Path(name), read)
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


def _from_yaml(path: Path, read: Read) -> SearchSpace:
    try:
        text = path.read_text("utf-8")
        entries, lines = yaml.safe_load(text), _lines(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"search_space {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(entries, dict) or not entries:
        raise ValueError(
            f"search_space {path} must hold `argument: {{low: ..., high: ...}}` lines, but holds {_repr(entries)}"
        )
    typed: dict[str, dict[str, Any]] = {}
    problems = []
    for name, entry in entries.items():
        found, faults = _typed_entry(str(name), entry, read)
        typed[str(name)] = found
        problems += [f"{path}, line {lines.get(str(name), 1)}: {fault}" for fault in faults]
    if problems:
        raise ValueError("\n".join(problems))
    return lambda trial, context: {name: _suggest(trial, context, name, entry) for name, entry in typed.items()}


def _lines(text: str) -> dict[str, int]:
    """Name -> the line it is in.

    Raises:
        ValueError: A name is there twice, of which YAML would take the last.
    """
    root = yaml.compose(text, yaml.SafeLoader)
    lines: dict[str, int] = {}
    for key, _ in root.value if isinstance(root, yaml.MappingNode) else ():
        line = key.start_mark.line + 1
        if str(key.value) in lines:
            raise ValueError(f"{key.value} is in line {lines[str(key.value)]} and again in line {line}")
        lines[str(key.value)] = line
    return lines


def _typed_entry(name: str, entry: Any, read: Read) -> tuple[dict[str, Any], list[str]]:
    """Returns what the file says of one argument, with values of the argument's own type, and what is wrong with it."""
    if not isinstance(entry, dict) or not entry:
        return {}, [f"{name} must be {{low, high}} or {{choices}}, but is {_repr(entry)}"]
    known = ("choices",) if "choices" in entry else ("low", "high", "step", "log", "int")
    if strange := [str(key) for key in entry if key not in known]:
        return {}, [f"{name}: {', '.join(strange)} has no meaning beside {', '.join(known)}"]
    if "choices" not in entry:
        return _typed_range(name, entry, read)
    if not entry["choices"] or not isinstance(entry["choices"], list):
        return {}, [f"{name}: choices must be a list of values"]
    try:
        return {"choices": _distinct([read(name, choice) for choice in entry["choices"]])}, []
    except ValueError as error:
        return {}, [f"{name}: {error}"]


def _distinct(values: list[Any]) -> list[Any]:
    """The values, those that are there twice once; 1 and True are two."""
    return list(
        {_repr(value) if isinstance(value, list | dict) else (type(value), value): value for value in values}.values()
    )


def _typed_range(name: str, entry: Mapping[str, Any], read: Read) -> tuple[dict[str, Any], list[str]]:
    if words := [f"{key}={_repr(entry[key])}" for key in ("log", "int") if not isinstance(entry.get(key, False), bool)]:
        return {}, [f"{name}: log and int must be true or false, but got {', '.join(words)}"]
    try:
        low, high, step = float(entry["low"]), float(entry["high"]), float(entry.get("step", 1))
    except (KeyError, TypeError, ValueError, OverflowError):
        return {}, [f"{name}: low, high and step must be numbers, but got {_range_words(entry)}"]
    try:
        bounds = [read(name, low), read(name, high)]
    except ValueError as error:
        return {}, [f"{name}: {error}"]
    if any(isinstance(bound, str) for bound in bounds):
        return {}, [f"{name} has no range: its values are text; name them, as {{choices: [...]}}"]
    whole = {"int": True} if all(isinstance(bound, int) for bound in bounds) else {}
    found = {**entry, "low": low, "high": high, **whole}
    return found, [f"{name}: {problem}" for problem in _range_problems(found, low, high, step)]


def _range_words(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_repr(entry.get(key))}" for key in ("low", "high", "step"))


def _repr(value: Any) -> str:
    """A short form: YAML's aliases make values of gigabytes from a few lines."""
    shortened = reprlib.Repr()
    shortened.maxlevel, shortened.maxother = 3, 60
    return shortened.repr(value)


def _range_problems(entry: Mapping[str, Any], low: float, high: float, step: float) -> Iterator[str]:
    is_log, is_int = bool(entry.get("log")), bool(entry.get("int"))
    if not (math.isfinite(low) and math.isfinite(high) and math.isfinite(step)):
        yield f"low, high and step must be finite, but got low={low}, high={high}, step={step}"
    elif not low <= high or (is_log and low <= 0):
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
