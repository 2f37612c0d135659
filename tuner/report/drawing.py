"""Plots as SVG that keeps the size of its letters at any width: positions are shares of the width, and pixels down.

No script draws them, so that a page of them is small, prints, and shows the same from a file. Marks are styled by the
page's own classes; what a mark is, it says in its title, which browsers show under the pointer.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_LOG_STEPS = ((1, 3), (1, 2, 5), tuple(range(1, 10)))
"""Which ticks a decade of a logarithmic axis may have, the fewest first."""
_SHAPES = {
    "dot": Markup('<circle r="4.5"/>'),
    "ring": Markup('<circle r="4" fill="#fff"/>'),
    "diamond": Markup('<path d="M0-6L6 0L0 6L-6 0Z"/>'),
    "cross": Markup('<path d="M-4-4L4 4M-4 4L4-4"/>'),
    "down": Markup('<path d="M-5-4L5-4L0 4Z"/>'),
    "tick": Markup('<path d="M0-9L0 9"/>'),
}
_PADDING = 0.06
_LETTER_HEIGHT = 14.0

Tick = tuple[float, str]
"""Where on an axis, and what is written there."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What values are shown from where to where."""

    low: float
    high: float
    ticks: Sequence[Tick]
    title: str = ""
    log: bool = False

    def share(self, value: float) -> float:
        """Returns how far along the axis `value` is, from 0 to 1; what lies beyond an end is put there."""
        low, high, value = (math.log(end) if self.log else end for end in (self.low, self.high, value))
        return min(1.0, max(0.0, (value - low) / (high - low)))


def linear(values: Sequence[float], title: str = "") -> Axis:
    """Returns an axis that holds `values`, with round ticks."""
    low, high = min(values), max(values)
    room = (high - low) * _PADDING or abs(high) * _PADDING or 1.0
    step = _round_step((high - low + 2 * room) / 5)
    first = math.ceil((low - room) / step)
    count = math.floor((high + room) / step) - first + 1
    digits = max(0, -math.floor(math.log10(step)))
    ticks = [((first + place) * step, f"{(first + place) * step:.{digits}f}") for place in range(count)]
    return Axis(low=low - room, high=high + room, ticks=ticks, title=title)


def logarithmic(values: Sequence[float], title: str = "") -> Axis:
    """Returns an axis of powers that holds `values`, all above 0."""
    low, high = min(values), max(values)
    room = (high / low) ** _PADDING if high > low else 1.5
    ticks = [(tick, tick_label(tick)) for tick in log_ticks(values) if low / room <= tick <= high * room]
    return Axis(low=low / room, high=high * room, ticks=ticks, title=title, log=True)


def counted(last: int, title: str = "") -> Axis:
    """Returns an axis of the whole numbers from 0 to `last`, ten of them written."""
    step = max(1, math.ceil(last / 10))
    return Axis(low=-0.5, high=last + 0.5, ticks=[(n, str(n)) for n in range(0, last + 1, step)], title=title)


def named(names: Sequence[str], title: str = "") -> Axis:
    """Returns an axis with a place for each name: 0, 1, and so on."""
    return Axis(low=-0.5, high=len(names) - 0.5, ticks=list(enumerate(names)), title=title)


def log_ticks(values: Sequence[float]) -> list[float]:
    """Returns round values where two of them lie between the ends, which are the ticks otherwise."""
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    for steps in _LOG_STEPS:
        ticks = [float(f"{step}e{power}") for power in powers for step in steps]
        if sum(low <= tick <= high for tick in ticks) >= 2:
            return ticks
    return sorted({low, high})


def tick_label(value: float) -> str:
    """Returns a number as an axis writes it: ``0.02``, ``3e-5``, ``1000``."""
    if 1e-3 <= value < 1e5:
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    digits, power = f"{value:.1e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def apart(places: Sequence[float], gap: float = _LETTER_HEIGHT) -> list[float]:
    """Returns the places of labels moved down so far that none covers another."""
    moved = list(places)
    order = sorted(range(len(places)), key=places.__getitem__)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    return moved


class Drawing:
    """A plot that marks are put on, the first at the back.

    Args:
        x: Axis across.
        y: Axis up; None: marks are put by pixels.
        height: Pixels of the plot without its labels.
        label: What a reader that does not see it is told.
        flipped: Whether the y axis goes down, as a list does.
    """

    def __init__(self, x: Axis, y: Axis, *, height: int, label: str, flipped: bool = False) -> None:
        self._x, self._y, self._height, self._label, self._flipped = x, y, height, label, flipped
        self._marks: list[Markup] = []

    def line(self, points: Sequence[tuple[float, float]], kind: str, title: str = "") -> None:
        """Draws a line through `points`."""
        parts = Markup("").join(
            Markup('<line x1="{}" y1="{}" x2="{}" y2="{}"/>').format(*self._at(*start), *self._at(*end))
            for start, end in itertools.pairwise(points)
        )
        self._marks.append(_group("line", kind, title, parts))

    def level(self, y: float, kind: str, title: str = "") -> None:
        """Draws a line from side to side."""
        self.line([(self._x.low, y), (self._x.high, y)], kind, title)

    def upright(self, x: float, kind: str, title: str = "") -> None:
        """Draws a line from top to bottom."""
        self.line([(x, self._y.low), (x, self._y.high)], kind, title)

    def band(self, low: float, high: float, title: str = "") -> None:
        """Shades what lies between two values of the y axis."""
        top, bottom = self._down(high), self._down(low)
        part = Markup('<rect x="0" width="100%" y="{:.1f}" height="{:.1f}"/>').format(top, max(0.0, bottom - top))
        self._marks.append(_group("band", "", title, part))

    def mark(self, x: float, y: float, shape: str, kind: str, title: str = "") -> None:
        """Draws a `shape` of `_SHAPES`; one that lies below the y axis is an arrow at its end."""
        shape = "down" if y < self._y.low and shape in ("dot", "ring", "diamond") else shape
        across, down = self._at(x, y)
        place = Markup('<svg x="{}" y="{}">{}</svg>').format(across, down, _SHAPES[shape])
        self._marks.append(_group(f"mark {shape}", kind, title, place))

    def text(self, x: float, y: float, words: str, kind: str = "", *, down: float | None = None) -> None:
        """Writes to the right of a place; `down` puts it at other pixels of the height."""
        across, there = self._at(x, y)
        self._marks.append(
            Markup('<text class="{}" x="{}" y="{}" dx="9" dy="0.35em">{}</text>').format(
                kind, across, there if down is None else f"{down:.1f}", words
            )
        )

    def down(self, y: float) -> float:
        """Returns how many pixels from the top `y` is."""
        return self._down(y)

    def svg(self) -> Markup:
        """Returns the plot with its axes, in a block of the page."""
        return Markup(
            '<div class="plot"><svg width="100%" height="{}" role="img" aria-label="{}">{}{}</svg>{}</div>'
        ).format(self._height, self._label, self._axes(), Markup("").join(self._marks), self._titles())

    def _axes(self) -> Markup:
        across = [
            Markup('<line x1="{0}" x2="{0}" y1="{1}" y2="{2}"/><text x="{0}" y="{3}" text-anchor="middle">{4}</text>')
            .format(_percent(self._x.share(at)), self._height, self._height + 5, self._height + 19, words)
            for at, words in self._x.ticks
        ]  # fmt: skip
        up = [
            Markup('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/>'
                   '<text x="-8" y="{0}" dy="0.35em" text-anchor="end">{1}</text>')
            .format(f"{self._down(at):.1f}", words)
            for at, words in self._y.ticks
        ]  # fmt: skip
        edge = Markup('<line x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(self._height)
        return Markup('<g class="axis">{}{}{}</g>').format(edge, Markup("").join(up), Markup("").join(across))

    def _titles(self) -> Markup:
        up = Markup('<p class="up">{}</p>').format(self._y.title) if self._y.title else Markup("")
        across = Markup('<p class="across">{}</p>').format(self._x.title) if self._x.title else Markup("")
        return up + across

    def _at(self, x: float, y: float) -> tuple[str, str]:
        return _percent(self._x.share(x)), f"{self._down(y):.1f}"

    def _down(self, y: float) -> float:
        share = self._y.share(y)
        return self._height * (share if self._flipped else 1 - share)


def _group(what: str, kind: str, title: str, parts: Markup) -> Markup:
    said = Markup("<title>{}</title>").format(title) if title else Markup("")
    return Markup('<g class="{}">{}{}</g>').format(f"{what} {kind}".strip(), said, parts)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _round_step(width: float) -> float:
    power = 10.0 ** math.floor(math.log10(width))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= width)
