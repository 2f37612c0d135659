"""A small SVG of regret over compute, both on a log scale."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.recorded_table import Floats
from benchmarks.replay.regret import OURS_MOST, SHARES

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 720, 400, 64, 20, 130, 48
_COLOURS: Mapping[str, str] = {"default": "#c2410c", "before": "#9a9a9a"}
_OTHERS = ("#1d4ed8", "#0f766e", "#7c3aed", "#b45309", "#be185d", "#4d7c0f")


def draw(curves: Mapping[str, Floats], path: Path, ends: Iterable[tuple[float, float]] = ()) -> None:
    """Draws mean regret on dev (shares,) of each strategy into `path`.

    Args:
        curves: By the strategy's name; our own are drawn as far as they are replayed.
        path: Of the SVG.
        ends: Shares and mean regrets of whole searches by the default, drawn as dots.
    """
    low = max(1e-4, min(float(curve[curve > 0].min()) for curve in curves.values() if np.any(curve > 0)))
    high = max(float(curve.max()) for curve in curves.values())
    others = iter(_OTHERS)
    lines = [_line(name, curve, _COLOURS.get(name) or next(others), low, high) for name, curve in curves.items()]
    names = [_label(name, index, line) for index, (name, line) in enumerate(zip(curves, lines, strict=True))]
    axes = [*_across(), *_up(low, high)]
    dots = [
        f'<circle cx="{_x(share):.1f}" cy="{_y(regret, low, high):.1f}" r="4" fill="{_COLOURS["default"]}"/>'
        for share, regret in ends
    ]
    body = "\n".join([*axes, *(line[1] for line in lines), *dots, *names])
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n',
        encoding="utf-8",
    )


def _x(share: float) -> float:
    part = math.log(share / SHARES[0]) / math.log(SHARES[-1] / SHARES[0])
    return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)


def _y(regret: float, low: float, high: float) -> float:
    part = math.log(max(regret, low) / low) / math.log(high / low)
    return _HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM)


def _line(name: str, curve: Floats, colour: str, low: float, high: float) -> tuple[str, str]:
    last = OURS_MOST if name in _COLOURS else 1.0
    shown = [(share, regret) for share, regret in zip(SHARES, curve, strict=True) if share <= last]
    points = " ".join(f"{_x(share):.1f},{_y(regret, low, high):.1f}" for share, regret in shown)
    width = 3 if name == "default" else 1.5
    return colour, f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _label(name: str, index: int, line: tuple[str, str]) -> str:
    return f'<text x="{_WIDTH - _RIGHT + 12}" y="{_TOP + 16 * (index + 1)}" fill="{line[0]}">{name}</text>'


def _across() -> list[str]:
    y = _HEIGHT - _BOTTOM
    ticks = [
        f'<text x="{_x(1 / parts):.1f}" y="{y + 18}" text-anchor="middle">{"1" if parts == 1 else f"1/{parts}"}</text>'
        for parts in (64, 32, 16, 8, 4, 2, 1)
    ]
    title = "compute, as a share of sixty random full trials"
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    rule = f'<line x1="{_LEFT}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#333"/>'
    return [rule, *ticks, f'<text x="{middle}" y="{y + 38}" text-anchor="middle">{title}</text>']


def _up(low: float, high: float) -> list[str]:
    values = [v for v in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3) if low <= v <= high]
    ticks = [f'<text x="{_LEFT - 8}" y="{_y(v, low, high) + 4:.1f}" text-anchor="end">{v:g}</text>' for v in values]
    rule = f'<line x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT}" y2="{_HEIGHT - _BOTTOM}" stroke="#333"/>'
    return [rule, *ticks, f'<text x="{_LEFT}" y="{_TOP - 6}">regret on dev (nDCG@10)</text>']
