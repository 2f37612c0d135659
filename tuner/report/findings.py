"""What a report says of the verdict: facts in sentences, one row a head, the guard table, and where the time went."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainables.scoring.metric import Metric, head_and_measure
from tuner.report.drawing import Axis, linear
from tuner.verdict.decision import (
    SIGNIFICANT,
    interval,
    is_certain,
    modes,
    scored_on,
    sentence,
    settings_notes,
)
from tuner.verdict.previous import previous_notes
from tuner.verdict.result import Best, Verdict
from tuner.verdict.statistics import Comparison
from tuner.verdict.time_spent import parts_of

INTERVAL_WIDTH = 150
"""Pixels of the drawing of an interval."""
_PARTS = {"test": "final test", "rest": "start and rest"}
_NEGATIVE = re.compile(r"(?<![\w.\-])-(?=\d)")
Guarded = Mapping[str, float | None]
"""Guard task -> score."""


def minus(text: str) -> str:
    """Returns a sentence with true minus signs before its numbers, as tables have them."""
    return _NEGATIVE.sub("−", text)


def tone(gain: Comparison) -> str:
    """Returns the colour of a gain: the verdict's own rule, in both directions; none where it may be chance."""
    if is_certain(gain):
        return "good"
    return "bad" if gain.ci95[1] < 0 and gain.p_value <= SIGNIFICANT else ""


def facts(result: Verdict, best: Best) -> list[tuple[str, str]]:
    """Returns what there is to know beside the verdict: a word and a sentence each."""
    settings = [("Settings", sentence(note)) for note in settings_notes(result)]
    earlier = [("Earlier search", sentence(note)) for note in previous_notes(result)]
    return [*settings, *earlier, *_gain_facts(result, best), *_other_facts(result, best)]


def _gain_facts(result: Verdict, best: Best) -> Iterator[tuple[str, str]]:
    count = best.win_tie_loss
    yield "Queries", f"{count.win} rank better, {count.tie} the same, {count.loss} worse."
    if result.versus_user:
        yield "Against your settings", _on_test(result.versus_user)
    elif result.user and result.user.folder == best.folder:
        yield "Your settings", "They are the best that was found."
    if result.versus_base:
        yield "Settings and training", f"Together {_on_test(result.versus_base)}"
    if count.tie == best.queries:
        yield "Test set", f"None of its {best.queries} queries changed: how small a gain they detect cannot be told."
    else:
        yield (
            "Test set",
            f"With {best.queries} queries a gain of {best.detectable:.4f} is detected in 8 of 10 cases; smaller ones "
            "less often.",
        )
    for name, gain in (result.objectives or {}).items():
        yield name, _on_test(gain)
    yield from _optimism(result)


def _optimism(result: Verdict) -> Iterator[tuple[str, str]]:
    base, best = result.compared, result.optimism
    if best is None or base is None or base.dev is None or base.test is None:
        return
    bias = best - (base.dev - base.test)
    said = (
        f"The difference, {bias:.4f}, is selection bias and chance."
        if bias > 0
        else "Choosing on dev flattered it by nothing."
    )
    yield (
        "Selection",
        f"The best trial scores {_lower(best)} on test than on dev; the base model, which was not selected, "
        f"{_lower(base.dev - base.test)}. {said}",
    )


def _lower(difference: float) -> str:
    return f"{abs(difference):.4f} {'lower' if difference >= 0 else 'higher'}"


def _other_facts(result: Verdict, best: Best) -> Iterator[tuple[str, str]]:
    if weights := result.hybrid_weights:
        yield "Hybrid", f"The score of compute_score with {modes(weights['default'])}."
        yield "Hybrid, tuned", f"{modes(weights['best'])} is best for the best trial on dev."
    if result.front:
        on_it = ", ".join(str(row.trial) for row in result.front)
        yield "Pareto front", f"No other trial is better on both objectives than trial {on_it}."
    if scored := scored_on(result):
        yield "Scored", f"{sentence(scored)} Values of trials are those at rungs."
    if result.noise is not None:
        trained = sum(len(row.seeds) for row in result.finalists) or len(best.seeds)
        yield (
            "Noise",
            f"Seeds of one configuration differ by {result.noise:.4f} (standard deviation, from {trained} trainings).",
        )
    if result.ties:
        tied = ", ".join(str(number) for number in result.ties)
        how = "differ by less than the noise" if result.noise else "score the same"
        yield "Tie", f"On dev, the best trial cannot be told from trial {tied}: they {how}."


def _on_test(gain: Comparison) -> str:
    return f"{gain.gain:+.4f} on test ({interval(gain)}, p = {gain.p_value:.4f})."


def intervals(result: Verdict) -> Axis:
    """Returns the one scale that the intervals of all heads are drawn on; 0 is on it."""
    return linear([0.0, *(end for gain in result.gains.values() for end in gain.ci95)])


def heads(result: Verdict, best: Best) -> list[dict[str, Any]]:
    """Returns one row a metric: scores on test, gain over the base model, and where to draw its interval."""
    axis = intervals(result)

    def place(value: float) -> float:
        """Pixels from the left of the drawing."""
        return axis.share(value) * INTERVAL_WIDTH

    return [
        {
            **_of_score(score, Metric.read(result.metric)),
            "is_objective": score == result.metric,
            "tone": tone(gain),
            **{
                name: model.test_all.get(score) if model else None
                for name, model in (("base", result.compared), ("user", result.user), ("best", best))
            },
            "drawn": {
                "zero": place(0.0),
                "low": place(gain.ci95[0]),
                "gain": place(gain.gain),
                "high": place(gain.ci95[1]),
            },
            **vars(gain),
        }
        for score, gain in result.gains.items()
    ]


def scale(result: Verdict) -> list[tuple[float, str]]:
    """Returns pixels and words of the ticks over the intervals: zero, and a round number on each side of it."""
    axis = intervals(result)
    below = [tick for tick in axis.ticks if tick[0] < -1e-9][:1]
    above = [tick for tick in axis.ticks if tick[0] > 1e-9][-1:]
    ticks = [*below, (0.0, "0"), *above]
    return [(axis.share(at) * INTERVAL_WIDTH, minus(words)) for at, words in ticks]


def _of_score(score: str, metric: Metric) -> dict[str, str]:
    """What the table calls it: head and measure, or for a sum or two objectives what the study maximised."""
    if score == str(metric) and not metric.is_score:
        return {"head": "mean of the objectives" if metric.is_pareto else "objective", "measure": ""}
    head, measure = head_and_measure(score)
    return {"head": head.replace("_", ", "), "measure": measure}


def guarded(result: Verdict, best: Best) -> dict[str, Any] | None:
    """Returns the guard table: base model, every finalist, the mixtures of the winner, and what was chosen.

    Each is compared with the base model encoded alike.
    """
    guard, number = result.guard, best.trial
    if guard is None:
        return None
    base: Guarded = {task: scores.base for task, scores in guard.tasks.items()}
    rows: list[tuple[str, float | None, Guarded, Guarded]] = [
        ("base model", result.compared.dev if result.compared else None, base, base)
    ]
    seeds = [*((row.trial, row.seeds) for row in result.finalists), (best.trial, best.seeds)]
    dev = {trial: scores[0].dev for trial, scores in seeds}
    for n, scores in guard.finalists.items():
        rows.append((f"trial {n}", dev.get(int(n)), scores, guard.finalist_bases.get(n, base)))
    for row in (result.mixtures.rows if result.mixtures else ())[1:-1]:
        rows.append((f"trial {number}, alpha {row.alpha:g}", row.dev, row.guard, base))
    chosen = f"trial {number}" + (f", alpha {best.alpha:g}" if best.alpha is not None else "")
    return {
        "tasks": list(guard.tasks),
        "rows": [
            {
                "name": name,
                "dev": dev,
                "chosen": name == chosen,
                "is_base": scores is base,
                "cells": [_guard_cell(of.get(task), scores.get(task), guard.tolerance) for task in guard.tasks],
            }
            for name, dev, scores, of in rows
        ],
    }


def _guard_cell(base: float | None, score: float | None, tolerance: float) -> tuple[float | None, float | None, bool]:
    """Score, change from the base model, and whether more is lost than may be."""
    change = None if base is None or score is None else score - base
    return score, change, change is None or change < -tolerance


def searched(result: Verdict, best: Best) -> list[tuple[str, Any, Any]]:
    """Returns name, value in the user's settings (None where there are none), value in the best trial."""
    yours = result.user.params if result.user else {}
    return [(name, yours.get(name), value) for name, value in best.params.items()]


def spent(seconds: Mapping[str, float], slots: int) -> list[tuple[str, float, float]]:
    """Returns part, seconds of the clock's, share of the clock in percent: the parts sum to it (`parts_of`)."""
    parts = {part: taken for part, taken in parts_of(seconds, slots).items() if taken > 0}
    return [(_PARTS.get(part, part), taken, 100 * taken / seconds["total"]) for part, taken in parts.items()]
