"""Jinja templates of a bundle's texts, and how they show values. Nothing is escaped of itself: no text is HTML."""

import html
import json
import shlex
from pathlib import Path
from typing import Any

import jinja2

from tuner.errors import printable
from tuner.verdict.decision import modes


def render(template: str, **values: Any) -> str:
    """Returns the text of a template that lies beside this module, with `values` in it."""
    return _ENVIRONMENT.get_template(template).render(values)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _cell(value: Any) -> str:
    """A value in a table: names of files and of tasks come from whoever made them."""
    return html.escape(_one_line(value), quote=False).replace("|", "\\|").replace("`", "&#96;")


def _code(value: Any) -> str:
    """A name in a table, as code; nothing in it ends the code or the row."""
    return f"`{_one_line(value).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _one_line(value: Any) -> str:
    return printable(" ".join(str(value).split()))


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=False,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters |= {
    "score": _score,
    "signed": lambda value: f"{value:+.4f}",
    "general": lambda value: f"{value:g}",
    "cell": _cell,
    "code": _code,
    "literal": _literal,
    "modes": modes,
    "word": shlex.quote,
    "one_line": _one_line,
}
