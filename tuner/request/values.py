"""Values as they come, from a command line, YAML, Python or a search space, read as one type or refused.

Whoever gives a value, the same one is read in the same way: text for a number, a path, numpy's scalars, an enumeration.
"""

import datetime
import enum
import json
import math
import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuner.run_dir.object_storage import is_url

_BOOLEANS = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
_LARGEST = 2**63
_NAME_BYTES = 255
"""Of a file's name, on Linux and macOS."""
_MOST = 500
"""Values of a mapping, and of what is in it: YAML's aliases make gigabytes from a few lines."""
_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")
"""Numbers to JSON and YAML 1.2 that YAML 1.1 reads as text."""
_NUMBER = r"(\d+\.?\d*|\.\d+)"
_UNITS = {"d(?:ays?)?": 86400, "h(?:(?:ou)?rs?)?": 3600, "m(?:in(?:ute)?s?)?": 60, "s(?:ec(?:ond)?s?)?": 1}
"""How a unit of time is written -> seconds; the larger ones come first in a duration."""
_DURATION = re.compile(r"\s*".join(rf"(?:{_NUMBER}\s*{unit})?" for unit in _UNITS), re.IGNORECASE)
_SIZE = re.compile(rf"{_NUMBER}\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def plain(value: Any) -> Any:
    """Returns `value` out of what Python wraps it in: an enumeration, a path, numpy's scalar or array, a tuple."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, bytes):
        value = os.fsdecode(value)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, tuple | set | frozenset | range):
        value = sorted(value, key=str) if isinstance(value, set | frozenset) else list(value)
    return value


def boolean(value: Any) -> bool:
    """Returns True or False.

    Raises:
        ValueError: `value` is neither of them, nor a word or digit for one.
    """
    if isinstance(value, bool | int | str) and str(value).lower() in _BOOLEANS:
        return _BOOLEANS[str(value).lower()]
    raise ValueError(f"must be True or False, but got {shown(value)}")


def whole_number(value: Any) -> int:
    """Returns an int.

    Raises:
        ValueError: `value` is no whole number, nor text for one, or needs more than 64 bits.
    """
    try:
        exact = int(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
    except ValueError:
        exact = None
    if exact is None:
        inexact = _finite(value, "a whole number")
        if not inexact.is_integer():
            raise ValueError(f"must be a whole number, but got {shown(value)}")
        exact = int(inexact)
    if abs(exact) >= _LARGEST:
        raise ValueError(f"must be a whole number of at most 64 bits, but got {shown(value)}")
    return exact


def number(value: Any) -> float:
    """Returns a finite float.

    Raises:
        ValueError: `value` is no number, nor text for one, or it is NaN or infinite.
    """
    return _finite(value, "a number")


def _finite(value: Any, words: str) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"must be {words}, but got {shown(value)}")
    try:
        found = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"must be {words}, but got {shown(value)}") from None
    if not math.isfinite(found):
        raise ValueError(f"must be {words}, and finite, but got {shown(value)}")
    return found


def duration(value: Any) -> float:
    """Returns seconds, above 0: of ``90``, ``90m``, ``8h``, ``1h30m``, ``1 day 12 hours`` or a `datetime.timedelta`.

    Raises:
        ValueError: `value` is none of these; a number without a unit is seconds.
    """
    if isinstance(value, datetime.timedelta):
        value = value.total_seconds()
    written = str(value).strip()
    parts = _DURATION.fullmatch(written)
    if not isinstance(value, bool) and re.fullmatch(_NUMBER, written):
        seconds = float(written)
    elif isinstance(value, str) and parts is not None:
        seconds = sum(float(count) * unit for count, unit in zip(parts.groups("0"), _UNITS.values(), strict=True))
    else:
        raise ValueError(f"must be a time such as 90m, 8h, 1h30m or 2d, but got {shown(value)}")
    return _positive(seconds, value, "90m")


def size(value: Any) -> float:
    """Returns bytes, above 0: of ``200GB``, ``1.5TB``, ``64GiB`` or a plain number.

    Raises:
        ValueError: `value` is none of these.
    """
    parts = None if isinstance(value, bool) else _SIZE.fullmatch(str(value).strip())
    if parts is None:
        raise ValueError(f"must be a size such as 50GB, 1.5TB or 64GiB, but got {shown(value)}")
    thousand = 1024.0 if parts[3] else 1000.0
    return _positive(float(parts[1]) * math.pow(thousand, " kmgt".index(parts[2].lower() or " ")), value, "50GB")


def _positive(amount: float, value: Any, example: str) -> float:
    if not 0 < amount < math.inf:
        raise ValueError(f"must be above 0, and finite, as {example}, but got {shown(value)}")
    return amount


def text(value: Any) -> str:
    """Returns a str that can be written to a file.

    Raises:
        ValueError: `value` is a list, a mapping or an object, or text that is no UTF-8.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        hint = ": write it in quotes" if isinstance(value, bool) else ""
        raise ValueError(f"must be text, but got {shown(value)}{hint}")
    written = str(value)
    if "\0" in written or any("\ud800" <= character <= "\udfff" for character in written):
        raise ValueError(f"must be text that UTF-8 can hold, without a zero byte, but got {shown(value)}")
    return written


def items(value: Any) -> list[Any]:
    """Returns a list: `value` itself, or the one item that it is.

    Raises:
        ValueError: It is a mapping, or there is nothing in it.
    """
    if isinstance(value, Mapping) or value == []:
        raise ValueError(f"must be one value or a list of them, but got {shown(value)}")
    return list(value) if isinstance(value, list) else [value]


def mapping(value: Any) -> Any:
    """Returns a mapping with plain values, read from JSON where `value` is text for one; other text as it is.

    Raises:
        ValueError: `value` is neither, or no JSON holds it.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"must be JSON, but got {shown(value)} ({error})") from None
    if not isinstance(value, Mapping):
        return text(value)
    found = _plain_inside(value, iter(range(_MOST)))
    try:
        json.dumps(found, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise ValueError(f"must hold what JSON can hold, but got {shown(value)} ({error})") from None
    return found


def _plain_inside(value: Any, places: Iterator[int]) -> Any:
    if next(places, None) is None:
        raise ValueError(f"must hold at most {_MOST} values, one in another counted")
    value = plain(value)
    if isinstance(value, Mapping):
        return {key: _plain_inside(each, places) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain_inside(each, places) for each in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def shown(value: Any) -> str:
    """Returns `value` for a message: on one line, and short, whatever it is."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 100, 100
    try:
        said = ascii(value[:80]) if isinstance(value, str) and not value.isprintable() else short.repr(value)
    except ValueError:  # an int of more digits than Python prints
        said = "a number of thousands of digits"
    return " ".join(said.split())


def name_problem(location: str) -> str:
    """Returns what is wrong with the names in a path, nothing where they are sound; URLs have other limits.

    Where a name is too long, asking whether there is such a file is an error by itself.
    """
    most = 0 if is_url(location) else max((len(os.fsencode(name)) for name in Path(location).parts), default=0)
    if most <= _NAME_BYTES:
        return ""
    return f"{location[:40]}...: a name in it has {most} bytes, but file systems take {_NAME_BYTES} at most; shorten it"
