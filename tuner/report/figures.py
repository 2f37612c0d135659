"""The pictures of a report and of the live page: how the search went, and how seeds differ.

A figure is left out where there is too little to draw; its caption says so.
"""

import warnings
from collections.abc import Sequence

import optuna
from markupsafe import Markup
from optuna import Study
from optuna.distributions import CategoricalDistribution

from tuner.report.drawing import Axis, Drawing, Tick, apart, counted, linear, logarithmic, named, tick_label
from tuner.report.scene import Picture, Scene, said, shape_of, shown
from tuner.report.standings import COMPLETE, FAILED, PAUSED, RUNNING, Standing, parameter_names, short_name
from tuner.study.trials import BASE, value_of
from tuner.verdict.result import Finalist

FEWEST_FOR_IMPORTANCE = 6
_HEIGHT = 260
_LABELLED = 16
"""Up to how many lines have the trial's number at their end."""

_FEWEST_FOR_LINES, _FEWEST_FOR_SLICES = 5, 3


def search_pictures(study: Study, scene: Scene) -> list[Picture]:
    """Draws how the search went.

    Args:
        study: The search, for the importances.
        scene: Its trials, the base model among them.

    Returns:
        Pareto front (of two objectives), history, rungs, importances, parallel coordinates and slices.
    """
    fronts = [_front(study, scene)] if len(study.directions) > 1 else []
    several = len(study.directions) > 1
    return [
        *fronts,
        history(scene),
        rungs_picture(scene, several=several),
        importances(study, scene),
        parallel(scene),
        slices(scene),
    ]


def history(scene: Scene) -> Picture:
    """Draws each trial's best score and the best so far."""
    title = "History"
    if not any(trial.value is not None for trial in scene.trials):
        return Picture(title=title, caption="Nothing has been scored yet.")
    y = scene.scores()
    drawing = Drawing(counted(scene.trials[-1].number, "trial"), y, height=_HEIGHT, label="score of each trial")
    scene.levels(drawing)
    drawing.line(_best_so_far(scene.trials), "best", "best so far")
    for trial in scene.trials:
        value = y.low if trial.value is None and trial.state == FAILED else trial.value
        if value is not None:
            drawing.mark(trial.number, value, shape_of(trial), scene.kind(trial), said(trial))
    caption = "Each trial at its best rung, and the best so far as a line. Trial 0 is the base model."
    return Picture(title=title, caption=caption + _band_said(scene), html=drawing.svg(), name="history")


def rungs_picture(scene: Scene, *, several: bool = False) -> Picture:
    """Draws the scores of each trial at its rungs.

    Args:
        scene: The trials.
        several: Whether the study has several objectives, and so stops no trial.
    """
    title, drawn = "Rungs and stopped trials", [trial for trial in scene.trials if trial.rungs]
    if several:
        return Picture(title=title, caption="Left out: with two objectives no trial is stopped.")
    if not drawn:
        return Picture(title=title, caption="No trial has reached its first rung.")
    ticks = [(float(place), f"{share:g}%") for place, share in enumerate((100 * rung for rung in scene.rungs), 1)]
    x = Axis(low=0.8, high=len(scene.rungs) + 0.35, ticks=ticks, title="training examples seen")
    drawing = Drawing(x, scene.scores(), height=_HEIGHT + 40, label="score of each trial at its rungs")
    scene.levels(drawing)
    for trial in sorted(drawn, key=lambda trial: trial.number == scene.best_number):
        _rung_line(drawing, trial, scene.kind(trial))
    _number_ends(drawing, [trial for trial in drawn if _goes_on(trial)] if len(drawn) <= _LABELLED else [], scene)
    stopped = "was stopped, or is paused" if any(trial.state == PAUSED for trial in drawn) else "was stopped"
    caption = f"A trial a line; it ends in a ring where it {stopped}, and in a cross where it failed."
    return Picture(title=title, caption=caption + _band_said(scene), html=drawing.svg(), name="rungs")


def seeds_picture(finalists: Sequence[Finalist], base: float | None, metric: str) -> Picture:
    """Draws each finalist's dev score by seed, its mean and the lower bound that ranks it."""
    title = "Spread between seeds"
    if not finalists:
        return Picture(title=title, caption="No finalist was trained with several seeds.")
    if len(finalists) == 1:
        return Picture(title=title, caption=_one_finalist(finalists[0]))
    ends = [end for row in finalists for end in (row.dev_mean, row.dev_lower) if end is not None]
    known = [*ends, *(seed.dev for row in finalists for seed in row.seeds), *([] if base is None else [base])]
    y = named([f"trial {row.trial}" for row in finalists])
    drawing = Drawing(
        linear(known, f"{metric} on dev"), y, height=48 * len(finalists), label="score by seed", flipped=True
    )
    if base is not None:
        drawing.upright(base, "base", f"base model {base:.4f}")
    for place, row in enumerate(finalists):
        if row.dev_lower is not None:
            drawing.line([(row.dev_lower, place), (row.dev_mean, place)], "stopped")
            drawing.mark(row.dev_lower, place, "tick", "stopped", f"lower bound {row.dev_lower:.4f}")
        for seed in row.seeds:
            drawing.mark(seed.dev, place, "ring", "running", f"seed {seed.seed}: {seed.dev:.4f}")
        drawing.mark(row.dev_mean, place, "tick", "done", f"mean {row.dev_mean:.4f}")
    caption = (
        "A ring is a seed, the dark mark their mean, the grey one its one-sided 95% lower bound, which "
        "ranks finalists. The dashed line is the base model."
    )
    return Picture(title=title, caption=caption, html=drawing.svg(), name="seeds")


def _one_finalist(row: Finalist) -> str:
    scores = ", ".join(f"{seed.dev:.4f} (seed {seed.seed})" for seed in row.seeds)
    bound = "" if row.dev_lower is None else f", one-sided 95% lower bound {row.dev_lower:.4f}"
    return f"Trial {row.trial} was the only finalist: {scores} on dev; mean {row.dev_mean:.4f}{bound}."


def _band_said(scene: Scene) -> str:
    if not scene.error or scene.base is None:
        return ""
    return (
        f" The band is one standard error of the base model's score over {scene.error[1]} dev queries, "
        f"±{scene.error[0]:.4f}."
    )


def _best_so_far(trials: Sequence[Standing]) -> list[tuple[float, float]]:
    """The corners of a step line over the trials that were trained."""
    corners: list[tuple[float, float]] = []
    for trial in trials:
        if trial.role == BASE or trial.value is None or trial.state == FAILED:
            continue
        best = max(trial.value, corners[-1][1]) if corners else trial.value
        if not corners or best > corners[-1][1]:
            corners += [(trial.number, corners[-1][1])] if corners else []
            corners.append((trial.number, best))
    return [*corners, (trials[-1].number + 0.5, corners[-1][1])] if corners else []


def _goes_on(trial: Standing) -> bool:
    return trial.state in (COMPLETE, RUNNING)


def _rung_line(drawing: Drawing, trial: Standing, kind: str) -> None:
    points = sorted(trial.rungs.items())
    drawing.line([(rung, value) for rung, value in points], kind, said(trial))
    for rung, value in points[:-1]:
        drawing.mark(rung, value, "dot", f"{kind} small", f"{trial.name}: {value:.4f}")
    rung, value = points[-1]
    drawing.mark(rung, value, shape_of(trial), kind, said(trial))


def _number_ends(drawing: Drawing, trials: Sequence[Standing], scene: Scene) -> None:
    ends = [max(trial.rungs.items()) for trial in trials]
    places = apart([drawing.down(value) for _, value in ends])
    for trial, (rung, value), place in zip(trials, ends, places, strict=True):
        drawing.text(rung, value, str(trial.number), f"halo {scene.kind(trial)}", down=place)


def _front(study: Study, scene: Scene) -> Picture:
    title, trained = "Pareto front", [trial for trial in scene.trials if len(trial.values) == 2]
    if not trained:
        return Picture(title=title, caption="No trial has been trained to its end.")
    across, up = study.metric_names or ("first objective", "second objective")
    x, y = (linear([t.values[place] for t in trained], name) for place, name in enumerate((across, up)))
    drawing, front = Drawing(x, y, height=_HEIGHT + 60, label=title), {trial.number for trial in study.best_trials}
    for trial in trained:
        kind = "failed" if trial.state == FAILED else "best" if trial.number in front else "done"
        first, second = trial.values
        drawing.mark(first, second, shape_of(trial), kind, f"{said(trial)}: {first:.4f}, {second:.4f}")
        if trial.number in front:
            drawing.text(first, second, str(trial.number), kind)
    caption = "A mark is a trial, the base model too. Blue, with its number: no other is better on both objectives."
    return Picture(title=title, caption=caption, html=drawing.svg(), name="front")


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
