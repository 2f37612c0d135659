"""The pictures of what the parameters did: importances, parallel coordinates and slices."""

import warnings
from collections.abc import Sequence

import optuna
from markupsafe import Markup
from optuna import Study
from optuna.distributions import CategoricalDistribution

from tuner.report.drawing import Axis, Drawing, Tick, linear, logarithmic, named, tick_label
from tuner.report.scene import Picture, Scene, said, shape_of, shown
from tuner.report.standings import Standing, parameter_names, short_name
from tuner.study.trials import value_of

FEWEST_FOR_IMPORTANCE = 6
_FEWEST_FOR_LINES, _FEWEST_FOR_SLICES = 5, 3
_HEIGHT = 260


def importances(study: Study, scene: Scene) -> Picture:
    """Draws how much each parameter decides, by Optuna's evaluator."""
    title, names = "Importance of each parameter", parameter_names(scene.trials)
    trained = [trial for trial in scene.trials if trial.is_trained]
    if len(trained) < FEWEST_FOR_IMPORTANCE or not names:
        caption = f"Needs at least {FEWEST_FOR_IMPORTANCE} trials that were trained to their end; there are"
        return Picture(title=title, caption=f"{caption} {len(trained)}.")
    target = value_of if len(study.directions) > 1 else None
    drawn = [name for name in names if all(name in trial.distributions for trial in trained)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the caption says that few trials make a rough guide
        found = optuna.importance.get_param_importances(study, params=drawn, target=target)
    rows = Markup("").join(
        Markup('<tr><th scope="row">{}</th><td class="n">{:.0%}</td><td class="chart"><span class="bar" style="width: '
               '{:.1f}%"></span></td></tr>').format(short_name(name), share, 100 * share)
        for name, share in found.items()
    )  # fmt: skip
    caption = f"How much each parameter decides how good a trial is. Of {len(trained)} trials: a rough guide."
    html = Markup("<table>{}</table>").format(rows)
    return Picture(title=title, caption=caption, html=html, name="importances")


def parallel(scene: Scene) -> Picture:
    """Draws each trained trial as a line over an axis a parameter."""
    title, names = "Parallel coordinates", parameter_names(scene.trials)
    trained = [trial for trial in scene.trials if trial.is_trained]
    if len(names) < 2 or len(trained) < _FEWEST_FOR_LINES:
        caption = f"Needs two parameters and {_FEWEST_FOR_LINES} trials that were trained to their end; there are"
        return Picture(title=title, caption=f"{caption} {len(names)} and {len(trained)}.")
    axes = [_axis_of(name, trained) for name in names]
    scores = linear([trial.value or 0.0 for trial in trained])
    places = [(place / len(axes), name) for place, name in enumerate(["dev", *map(short_name, names)])]
    x = Axis(low=-0.02, high=1.12, ticks=places)
    drawing = Drawing(x, Axis(low=0, high=1, ticks=()), height=_HEIGHT, label=title)
    for place, _ in places:
        drawing.upright(place, "axis")
    for trial in sorted(trained, key=lambda trial: trial.number == scene.best_number):
        shares = [scores.share(trial.value or 0.0)]
        shares += [axis.share(at(trial.params[name])) for name, (axis, at) in zip(names, axes, strict=True)]
        points = [(place, share) for (place, _), share in zip(places, shares, strict=True)]
        drawing.line(points, scene.kind(trial), said(trial))
    for (place, _), axis in zip(places, [scores, *(axis for axis, _ in axes)], strict=True):
        _write_ticks(drawing, place, axis)
    caption = "A trial a line, from its score to its parameters; blue is the best."
    return Picture(title=title, caption=caption, html=drawing.svg(), name="parallel", width=104 * len(places))


def _write_ticks(drawing: Drawing, place: float, axis: Axis) -> None:
    shown: list[float] = []
    for at, words in axis.ticks:
        down = drawing.down(axis.share(at))
        if all(abs(down - other) >= 14 for other in shown):
            shown.append(down)
            drawing.text(place, axis.share(at), words, "halo")


def slices(scene: Scene) -> Picture:
    """Draws the scores against each parameter, a small plot each."""
    title, names = "Slices", parameter_names(scene.trials)
    trained = [trial for trial in scene.trials if trial.is_trained]
    if len(trained) < _FEWEST_FOR_SLICES or not names:
        caption = f"Needs {_FEWEST_FOR_SLICES} trials that were trained to their end; there are"
        return Picture(title=title, caption=f"{caption} {len(trained)}.")
    y = scene.scores()
    plots = Markup("").join(_slice(scene, trained, name, y) for name in names)
    caption = "The score of each trial against one parameter alone; blue is the best, the diamond your own settings."
    return Picture(title=title, caption=caption, html=Markup('<div class="grid">{}</div>').format(plots), name="slices")


def _slice(scene: Scene, trained: Sequence[Standing], name: str, y: Axis) -> Markup:
    axis, at = _axis_of(name, trained)
    y = Axis(low=y.low, high=y.high, ticks=y.ticks)
    drawing = Drawing(axis, y, height=160, label=f"score by {name}")
    if scene.base and scene.base.value is not None:
        drawing.level(scene.base.value, "base", f"base model {scene.base.value:.4f}")
    for trial in trained:
        drawing.mark(at(trial.params[name]), trial.value or 0.0, shape_of(trial), scene.kind(trial), said(trial))
    return drawing.svg()


class _Place:
    """Where a parameter's value is on its axis: itself, or of names their place in a list."""

    def __init__(self, names: Sequence[object] | None) -> None:
        self._names = names

    def __call__(self, value: object) -> float:
        if self._names is not None:
            return float(self._names.index(value))
        assert isinstance(value, int | float)
        return float(value)


def _axis_of(name: str, trained: Sequence[Standing]) -> tuple[Axis, _Place]:
    values = [trial.params[name] for trial in trained]
    drawn = trained[0].distributions.get(name)
    title = short_name(name)
    if isinstance(drawn, CategoricalDistribution) or not all(isinstance(value, int | float) for value in values):
        choices = list(drawn.choices) if isinstance(drawn, CategoricalDistribution) else []
        known = [choice for choice in choices if choice in values] + sorted(
            {v for v in values if v not in choices}, key=str
        )
        return named([shown(value) for value in known], title), _Place(known)
    is_log = trained[-1].is_log(name) and min(values) > 0
    axis = logarithmic(values, title) if is_log else linear(values, title)
    return _with_ends(axis, values), _Place(None)


def _with_ends(axis: Axis, values: Sequence[float]) -> Axis:
    """An axis has a tick on both sides of its values, or at its ends where they are few."""
    if len(axis.ticks) >= 2:
        return axis
    ends: list[Tick] = [
        (value, tick_label(value) if value > 0 else f"{value:g}") for value in {min(values), max(values)}
    ]
    return Axis(low=axis.low, high=axis.high, ticks=sorted(ends), title=axis.title, log=axis.log)
