"""report.html: what a search found, on one page that opens without a network."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from optuna.trial import FrozenTrial
from plotly.offline import get_plotlyjs

from trainables.files import write_text
from trainables.names import DATA
from trainables.scoring.metric import Metric, head_and_measure
from tuner.errors import RequestError
from tuner.report.figures import search_pictures, seeds_picture
from tuner.report.queries import moved_queries
from tuner.run_dir.names import (
    BEST,
    CONFIG_FILE,
    EVAL,
    MANIFEST,
    REPORT_FILE,
    RESULT_FILE,
    STUDY_FILE,
    TRAIN_SCRIPT,
    eval_path,
)
from tuner.run_dir.written import is_foreign
from tuner.study.study import read_studies
from tuner.study.trials import ERROR, ROLE, SAMPLED, SECONDS, arguments_of, has_failed, value_of
from tuner.verdict.decision import FINE_TUNE, interval, modes, range_notes, scored_on, sentence, settings_notes
from tuner.verdict.result import Best, Verdict, bundle_of
from tuner.verdict.statistics import Comparison

_TEMPLATE = "report_template.html"
_INTERVAL_WIDTH = 150
READ = (
    CONFIG_FILE,
    RESULT_FILE,
    STUDY_FILE,
    f"{DATA}/{MANIFEST}",
    f"{DATA}/{EVAL}",
    f"{BEST}/{RESULT_FILE}",
    f"{BEST}/{TRAIN_SCRIPT}",
)
"""What a report is written from, in a run directory: no weights, no training states."""
_PARTS = {"test": "final test"}
Guarded = Mapping[str, float | None]
"""Guard task -> score."""


def write_report(run_dir: Path, storage: str | None = None) -> Path:
    """Writes RUN/report.html anew; before the search has ended, with what there is until then.

    Args:
        run_dir: A run directory.
        storage: Optuna storage URL; None: the one in config.yaml, or RUN/study.db.

    Returns:
        The path of the report.

    Raises:
        RequestError: If `run_dir` is no run directory, or has a report.html of somebody else's.
    """
    if not (run_dir / CONFIG_FILE).exists():
        raise RequestError(
            [f"A run directory holds config.yaml, but {run_dir} does not; name the --run_dir of a search"]
        )
    if is_foreign(run_dir, REPORT_FILE):
        raise RequestError([f"{run_dir / REPORT_FILE}: is no report of a search, and would be written over; move it"])
    page = _environment().get_template(_TEMPLATE).render(_contents(run_dir, storage))
    write_text(run_dir / REPORT_FILE, page)
    return run_dir / REPORT_FILE


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": _score, "signed": _signed, "value": _value, "duration": _duration}
    return environment


def _contents(run_dir: Path, storage: str | None) -> dict[str, Any]:
    """Everything that the template shows, by name."""
    config = yaml.safe_load((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    search, _ = read_studies(run_dir, storage or config["storage"], config.get("study_name"))
    trials, result = search.get_trials(deepcopy=False), Verdict.read(run_dir)
    best = result.best if result else None
    metric = Metric.read(config["metric"])
    return {
        "name": run_dir.resolve().name,
        "metric": metric.label,
        "is_dense": metric.heads == {"dense"},
        "result": result,
        "best": best,
        "fine_tune": result is not None and result.verdict == FINE_TUNE,
        "interval_width": _INTERVAL_WIDTH,
        "pictures": search_pictures(
            search, metric=metric.label, rungs=config["rungs"], winner=best.trial if best else None
        ),
        "spent": _spent(result.seconds) if result else [],
        "trials": [_trial_row(trial) for trial in trials],
        "parameter_names": list(dict.fromkeys(name for trial in trials for name in arguments_of(trial))),
        "manifest": _json(run_dir / DATA / MANIFEST),
        "search_command": config["command"],
        "plotly": Markup(get_plotlyjs()),
        **(_findings(run_dir, result, best, metric.label) if result and best else _NOTHING),
    }


_NOTHING: Mapping[str, Any] = {
    "alike": None,
    "facts": [],
    "heads": [],
    "guarded": None,
    "parameters": [],
    "queries": {},
    "seeds": None,
    "train_command": None,
}


def _findings(run_dir: Path, result: Verdict, best: Best, metric: str) -> dict[str, Any]:
    """What there is to show of a search in which a trial was trained to its end."""
    return {
        "alike": result.base.encoded_as_best if result.base else None,
        "facts": _facts(result, best),
        "heads": _heads(result, best),
        "guarded": _guarded(result, best),
        "parameters": _parameters(result, best),
        "queries": moved_queries(eval_path(run_dir), result.queries),
        "seeds": seeds_picture(result.finalists, result.compared.dev if result.compared else None, metric),
        "train_command": _train_command(run_dir, result, best),
    }


def _facts(result: Verdict, best: Best) -> list[tuple[str, str]]:
    """What there is to know beside the verdict: a word and a sentence each."""
    settings = [("Settings", sentence(note)) for note in settings_notes(result)]
    return [*settings, *_gain_facts(result, best), *_other_facts(result)]


def _gain_facts(result: Verdict, best: Best) -> Iterator[tuple[str, str]]:
    count, base = best.win_tie_loss, result.compared
    yield "Queries", f"{count.win} rank better, {count.tie} the same, {count.loss} worse."
    if result.versus_user:
        yield "Against your settings", _on_test(result.versus_user)
    elif result.user and result.user.folder == best.folder:
        yield "Your settings", "They are the best that was found."
    if result.versus_base:
        yield "Settings and training", f"Together {_on_test(result.versus_base)}"
    detects = f"detect gains of about {best.detectable:.4f} and more"
    if count.tie == best.queries:
        detects = "do not tell how small a gain they detect: none of them changed"
    yield "Test set", f"{best.queries} queries {detects}."
    for name, gain in (result.objectives or {}).items():
        yield name, _on_test(gain)
    if result.optimism is not None and base is not None and base.dev is not None and base.test is not None:
        drop = f"Dev minus test of the best trial is {result.optimism:+.4f}; of the base model, not selected, "
        yield "Optimism", drop + f"{base.dev - base.test:+.4f}."


def _other_facts(result: Verdict) -> Iterator[tuple[str, str]]:
    if weights := result.hybrid_weights:
        yield "Hybrid", f"The score of compute_score with {modes(weights['default'])}."
        yield "Hybrid, tuned", f"{modes(weights['best'])} is best for the best trial on dev."
    if result.front:
        on_it = ", ".join(str(row.trial) for row in result.front)
        yield "Pareto front", f"No other trial is better on both objectives than trial {on_it}."
    for note in range_notes(result.range_ends):
        yield "Range", sentence(note)
    if scored := scored_on(result):
        yield "Scored", f"{sentence(scored)} Values of trials are those at rungs."
    if result.noise is not None:
        yield "Noise", f"Seeds of one configuration differ by {result.noise:.4f} (standard deviation)."
    if result.ties:
        tied = ", ".join(str(number) for number in result.ties)
        yield "Tie", f"On dev, the best trial cannot be told from trial {tied}: they differ by less than the noise."


def _on_test(gain: Comparison) -> str:
    return f"{gain.gain:+.4f} on test ({interval(gain)}, p = {gain.p_value:.4f})."


def _heads(result: Verdict, best: Best) -> list[dict[str, Any]]:
    """One row a metric: scores on test, gain over the base model, and where to draw its interval."""
    ends: list[float] = [0.0, *(end for gain in result.gains.values() for end in gain.ci95)]
    left, width = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float) -> float:
        """Pixels from the left of the drawing, 5 of them a margin."""
        return 5 + (value - left) / width * (_INTERVAL_WIDTH - 10)

    return [
        {
            **_of_score(score, Metric.read(result.metric)),
            "is_objective": score == result.metric,
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


def _of_score(score: str, metric: Metric) -> dict[str, str]:
    """What the table calls it: head and measure, or for a sum or two objectives what the study maximised."""
    if score == str(metric) and not metric.is_score:
        return {"head": "mean of the objectives" if metric.is_pareto else "objective", "measure": ""}
    head, measure = head_and_measure(score)
    return {"head": head.replace("_", ", "), "measure": measure}


def _guarded(result: Verdict, best: Best) -> dict[str, Any] | None:
    """The guard table: base model, every finalist, the mixtures of the winner, and what was chosen.

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


def _parameters(result: Verdict, best: Best) -> list[tuple[str, Any, Any]]:
    """Name, value in the user's settings (None where there are none), value in the best trial."""
    yours = result.user.params if result.user else {}
    return [(name, yours.get(name), value) for name, value in best.params.items()]


def _spent(seconds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Part, seconds, share of all parts in percent; the rest of the clock is a part, where jobs ran one by one."""
    parts = {_PARTS.get(part, part): spent for part, spent in seconds.items() if part != "total" and spent > 0}
    if (rest := seconds["total"] - sum(parts.values())) > 0:
        parts["rest of the clock"] = rest
    whole = sum(parts.values())
    return [(part, spent, 100 * spent / whole) for part, spent in parts.items()]


def _trial_row(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "role": trial.user_attrs.get(ROLE, SAMPLED),
        "state": "fail" if has_failed(trial) else trial.state.name.lower(),
        "params": arguments_of(trial),
        "value": value_of(trial) if trial.values else max(trial.intermediate_values.values(), default=None),
        "seconds": sum(trial.user_attrs.get(SECONDS, {}).values()),
        "error": trial.user_attrs.get(ERROR, ""),
    }


def _train_command(run_dir: Path, result: Verdict, best: Best) -> str:
    """The bundle's train.sh; without one, the parameters as flags of FlagEmbedding's own command."""
    bundle = bundle_of(run_dir, result)
    if bundle is not None and (bundle / TRAIN_SCRIPT).is_file():
        return (bundle / TRAIN_SCRIPT).read_text(encoding="utf-8")
    return " \\\n".join(f"--{name} {value}" for name, value in best.params.items())


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _value(value: Any) -> str:
    """A parameter's value: floats to three digits."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
