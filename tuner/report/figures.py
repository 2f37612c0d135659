"""The pictures of a report: optuna.visualization in the report's own dress, and the spread between seeds.

A figure is left out where there is too little to draw; the report says so in its place.
"""

import math
import warnings
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import plotly.graph_objects as go
import plotly.io
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from tuner.study.trials import BASE, ROLE, has_failed, value_of
from tuner.verdict.result import Finalist

INK, MUTED, RULE = "#1f2933", "#66727f", "#dde2e7"
ACCENT, FADED, WARM = "#2171b5", "#b9c3cc", "#b4622d"
FEWEST_FOR_IMPORTANCE = 6
_FONT = {"family": "system-ui, 'Segoe UI', 'Noto Sans CJK SC', sans-serif", "size": 13, "color": INK}
_AXIS = {
    "gridcolor": RULE,
    "linecolor": RULE,
    "zeroline": False,
    "ticks": "outside",
    "tickcolor": RULE,
    "automargin": True,
}
_MARGIN = {"l": 64, "r": 48, "t": 28, "b": 56}
_LOG_STEPS = ((1, 3), (1, 2, 5), tuple(range(1, 10)))
"""Which ticks a decade of a logarithmic axis may have, the fewest first."""
_PLAIN = {"displayModeBar": False, "responsive": True}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One figure of the report."""

    title: str
    caption: str
    """What is shown and how to read it, in a sentence or two."""
    html: str
    """A div and the script that draws it; empty where there is nothing to draw."""
    width: int = 0
    """Pixels below which the picture scrolls in place of shrinking; 0: shrinks freely."""


class _Trained(Study):
    """The search without the base model, which has no parameters to draw."""

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return [trial for trial in super().get_trials(deepcopy, states) if trial.params]


def search_pictures(study: Study, *, metric: str, rungs: Sequence[float], winner: int | None) -> list[Picture]:
    """Draws how the search went.

    Args:
        study: The search, the base model's trial among its trials.
        metric: Name of the objective, for the axes.
        rungs: Shares of the training examples at which trials were scored.
        winner: Number of the winning trial, drawn in the accent colour.

    Returns:
        History, rungs, importances, parallel coordinates and slices.
    """
    parameters = _shared_parameters(study)
    fronts = [_front(study)] if len(study.directions) > 1 else []
    return [
        *fronts,
        _history(study, metric),
        _rungs(study, metric, rungs, winner),
        _importances(study, metric, parameters),
        _parallel(study, metric, parameters),
        _slices(study, metric, parameters),
    ]


def seeds_picture(finalists: Sequence[Finalist], base: float | None, metric: str) -> Picture:
    """Draws each finalist's dev score by seed, its mean and the lower bound that ranks it."""
    title = "Spread between seeds"
    if not finalists:
        return Picture(title=title, caption="No finalist was trained with several seeds.", html="")
    names = [f"trial {row.trial}" for row in finalists]
    figure = go.Figure()
    for name, row in zip(names, finalists, strict=True):
        lows, scores = [row.dev_lower, row.dev_mean], [seed.dev for seed in row.seeds]
        figure.add_scatter(x=lows, y=[name] * 2, mode="lines", line={"color": FADED, "width": 2}, hoverinfo="skip")
        labels = [f"seed {seed.seed}" for seed in row.seeds]
        figure.add_scatter(x=scores, y=[name] * len(scores), mode="markers", text=labels, marker=_dot(ACCENT, 9, 0.55))
        figure.add_scatter(x=lows[1:], y=[name], mode="markers", marker=_mark("line-ns", INK), name="mean")
        figure.add_scatter(x=lows[:1], y=[name], mode="markers", marker=_mark("line-ns", WARM), name="lower bound")
    _base_line(figure, base, vertical=True)
    figure.update_layout(height=120 + 48 * len(names))
    figure.update_xaxes(title=f"{metric} on dev")
    figure.update_yaxes(autorange="reversed", title=None)
    caption = "A dot is a seed, the dark mark their mean, the orange one its one-sided 95% lower bound, which ranks."
    return Picture(title=title, caption=caption, html=_html(figure, "seeds"))


def _target(study: Study) -> Callable[[FrozenTrial], float] | None:
    """What Optuna's pictures show: the value, or of several objectives the mean, which ranks."""
    return value_of if len(study.directions) > 1 else None


def _front(study: Study) -> Picture:
    figure = optuna.visualization.plot_pareto_front(study, include_dominated_trials=True)
    for trace, colour in zip(reversed(figure.data), (ACCENT, FADED, WARM), strict=False):
        trace.update(marker={**_dot(colour, 10, 1.0), "showscale": False})
    figure.update_layout(height=420)
    caption = (
        "One dot a complete trial, the base model too. Blue: no other trial is better on both objectives. "
        "Orange: violates a constraint."
    )
    return Picture(title="Pareto front", caption=caption, html=_html(figure, "front"))


def _history(study: Study, metric: str) -> Picture:
    figure = optuna.visualization.plot_optimization_history(study, target=_target(study), target_name=metric)
    for trace in figure.data:
        is_best = trace.mode == "lines"
        trace.update(line={"color": INK, "width": 1.5, "shape": "hv"}) if is_best else trace.update(
            marker=_dot(ACCENT, 9, 0.8)
        )
    figure.update_layout(height=340, xaxis={"title": "trial", "dtick": _step(len(study.trials))})
    figure.update_yaxes(title=f"{metric} on dev")
    caption = "Each dot is a completed trial, at its best rung; the line is the best so far. Trial 0 is the base."
    return Picture(title="History", caption=caption, html=_html(figure, "history"))


def _rungs(study: Study, metric: str, rungs: Sequence[float], winner: int | None) -> Picture:
    title, trials = "Rungs and pruned trials", {t.number: t for t in study.get_trials(deepcopy=False)}
    if len(study.directions) > 1:
        return Picture(title=title, caption="Left out: with two objectives no trial is pruned.", html="")
    if not any(trial.intermediate_values for trial in trials.values() if not has_failed(trial)):
        return Picture(title=title, caption="No trial that held reached its first rung.", html="")
    figure = optuna.visualization.plot_intermediate_values(study)
    for trace in figure.data:
        number = int(trace.name.removeprefix("Trial"))
        colour, width = _line_of(trials[number], winner)
        trace.update(line={"color": colour, "width": width}, marker=_dot(colour, 7, 1.0), name=f"trial {number}")
    _base_line(figure, next((value_of(t) for t in trials.values() if _is_base(t)), None))
    ticks = {"tickvals": list(range(1, len(rungs) + 1)), "ticktext": [f"{rung:.0%}" for rung in rungs]}
    figure.update_layout(height=380, xaxis={"title": "training examples seen", **ticks})
    figure.update_yaxes(title=f"{metric} on dev")
    caption = "Dark: the winner. Blue: trials that went on to the end. Grey: pruned on the way."
    return Picture(title=title, caption=caption, html=_html(figure, "rungs"))


def _importances(study: Study, metric: str, parameters: Sequence[str]) -> Picture:
    title, trained = "Importance of each parameter", _trained(study)
    if len(trained) < FEWEST_FOR_IMPORTANCE or not parameters:
        caption = (
            f"Left out: {len(trained)} completed trials are too few to tell; at least {FEWEST_FOR_IMPORTANCE} are."
        )
        return Picture(title=title, caption=caption, html="")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the caption says that few trials make a rough guide
        figure = optuna.visualization.plot_param_importances(
            study, params=list(parameters), target=_target(study), target_name=metric
        )
    figure.update_traces(marker={"color": ACCENT})
    figure.update_layout(height=120 + 36 * len(parameters))
    figure.update_xaxes(title="share of the importance")
    figure.update_yaxes(title=None)
    caption = (
        f"How much each parameter decides whether a trial is among the best. {len(trained)} trials: a rough guide."
    )
    return Picture(title=title, caption=caption, html=_html(figure, "importances"))


def _parallel(study: Study, metric: str, parameters: Sequence[str]) -> Picture:
    def draw() -> go.Figure:
        trained = _Trained(study_name=study.study_name, storage=study._storage)
        figure = optuna.visualization.plot_parallel_coordinate(
            trained, params=list(parameters), target=_target(study), target_name=metric
        )
        figure.for_each_trace(_darken, selector={"type": "scatter", "mode": "lines"})
        figure.update_traces(marker_showscale=False, selector={"type": "scatter", "mode": "markers"})
        return figure.update_layout(height=420)

    caption = "One line a completed trial, from its score to its parameters; the darker, the better."
    return _with_parameters("Parallel coordinates", caption, draw, study, parameters, width=150)


def _slices(study: Study, metric: str, parameters: Sequence[str]) -> Picture:
    def draw() -> go.Figure:
        figure = optuna.visualization.plot_slice(
            study, params=list(parameters), target=_target(study), target_name=metric
        )
        figure.update_traces(marker={"size": 9, "showscale": False, "line": {"color": MUTED, "width": 0.5}})
        return figure.update_layout(height=340, width=None)

    caption = "The score against each parameter alone; the darker, the later in the search."
    return _with_parameters("Slices", caption, draw, study, parameters, width=170)


def _darken(trace: go.Scatter) -> None:
    """Makes the worst trials' lines, almost white in Optuna's scale, visible on a white page."""
    if not trace.line.color.startswith("rgb("):
        return  # an axis, not a trial
    red, green, blue = (0.8 * float(part) for part in trace.line.color.removeprefix("rgb(").rstrip(")").split(","))
    trace.update(line={"color": f"rgb({red:.0f},{green:.0f},{blue:.0f})", "width": 2}, opacity=1.0)


def _with_parameters(
    title: str, caption: str, draw: Callable[[], go.Figure], study: Study, parameters: Sequence[str], *, width: int
) -> Picture:
    if len(_trained(study)) < 2 or not parameters:
        return Picture(title=title, caption="Left out: fewer than two completed trials have parameters.", html="")
    name = title.lower().replace(" ", "-")
    return Picture(title=title, caption=caption, html=_html(draw(), name), width=width * (len(parameters) + 1))


def _trained(study: Study) -> list[FrozenTrial]:
    return [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if t.params]


def _shared_parameters(study: Study) -> list[str]:
    """Parameters that every completed trial but the base model has, in the order of the search space."""
    trained = _trained(study)
    names = list(trained[0].params) if trained else []
    return [name for name in names if all(name in trial.params for trial in trained)]


def _is_base(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get(ROLE) == BASE and trial.state == TrialState.COMPLETE


def _line_of(trial: FrozenTrial, winner: int | None) -> tuple[str, float]:
    if trial.number == winner:
        return INK, 3.0
    return (ACCENT, 1.5) if trial.state == TrialState.COMPLETE else (FADED, 1.5)


def _base_line(figure: go.Figure, value: float | None, *, vertical: bool = False) -> None:
    if value is not None:
        draw, side = (figure.add_vline, "top") if vertical else (figure.add_hline, "right")
        note = {"annotation_text": "base", "annotation_font_color": MUTED, "annotation_font_size": 12}
        draw(value, line={"color": MUTED, "width": 1, "dash": "dot"}, annotation_position=side, **note)


def _dot(colour: str, size: int, opacity: float) -> dict[str, Any]:
    return {"color": colour, "size": size, "opacity": opacity}


def _mark(symbol: str, colour: str) -> dict[str, Any]:
    return {"symbol": symbol, "size": 16, "line": {"color": colour, "width": 3}}


def _step(trials: int) -> int:
    return max(1, trials // 10)


def _drawn_along(figure: go.Figure, axis: Any) -> list[float]:
    """The values that the traces of a horizontal axis have on it."""
    name = axis.plotly_name.replace("axis", "")
    return [value for trace in figure.data if (trace.xaxis or "x") == name for value in trace.x]


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Round values where two of them lie between the ends, which are the ticks otherwise."""
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    for steps in _LOG_STEPS:
        ticks = [float(f"{step}e{power}") for power in powers for step in steps]
        if sum(low <= tick <= high for tick in ticks) >= 2:
            return ticks
    return sorted({low, high})


def _tick(value: float) -> str:
    if 1e-3 <= value < 1e5:
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    digits, power = f"{value:.1e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def _html(figure: go.Figure, name: str) -> str:
    """A div and its script, without plotly.js, which the page holds once."""
    figure.update_layout(template="none", title=None, showlegend=False, font=_FONT, margin=_MARGIN)
    figure.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        axis.update(_AXIS, title={"standoff": 12, "font": {"size": 13}})
        if axis.type == "log":
            ticks = _log_ticks(_drawn_along(figure, axis))
            axis.update(tickvals=ticks, ticktext=[_tick(tick) for tick in ticks], tickangle=0)
    return str(plotly.io.to_html(figure, config=_PLAIN, full_html=False, include_plotlyjs=False, div_id=name))
