"""Where the pages come from, and how they write numbers: everything that is put into one is escaped."""

import functools
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tuner.report.findings import minus


@functools.cache
def environment() -> jinja2.Environment:
    """Returns where pages come from: everything that is put into one is escaped."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "score": _score,
        "signed": _signed,
        "value": _value,
        "duration": duration,
        "minus": minus,
        "broken": _broken,
    }
    return found


def framed(page: str, *, height: int, title: str) -> str:
    """Returns a whole page in a frame of its own, for a notebook's cell, whoever serves that.

    Args:
        page: The page's HTML.
        height: Of the frame, in pixels.
        title: What a screen reader calls the frame.
    """
    frame = '<div><iframe srcdoc="{}" style="border: 0; width: 100%; height: {}px" title="{}"></iframe></div>'
    return str(Markup(frame).format(str(page), height, title))


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _value(value: Any) -> str:
    """A parameter's value: floats to three digits."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _broken(name: str) -> Markup:
    """A parameter's name that may be broken into lines after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def duration(seconds: float) -> str:
    """Returns seconds as a person says them: ``42.0 s``, ``3 min 05 s``, ``1 h 30 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
