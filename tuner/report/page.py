"""report.html: what a search found, on one page that opens without a network."""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trainables.files import write_text
from trainables.names import DATA, scores_file
from trainables.scoring.metric import Metric
from tuner.errors import RequestError
from tuner.report import findings
from tuner.report.about import about, data_names, elsewhere, kept_settings, links, log_of, model_name
from tuner.report.advice import advice
from tuner.report.figures import search_pictures, seeds_picture
from tuner.report.queries import moved_queries
from tuner.report.scene import Scene
from tuner.report.standings import Standing, dev_error, standings
from tuner.report.templates import environment
from tuner.run_dir.names import (
    BASE_FOLDER,
    BEST,
    CONFIG_FILE,
    EVAL,
    MANIFEST,
    REPORT_FILE,
    RESULT_FILE,
    STUDY_FILE,
    TRAIN_SCRIPT,
    eval_path,
    part_name,
)
from tuner.run_dir.written import is_foreign
from tuner.study.study import read_studies
from tuner.study.trials import how_they_ended
from tuner.verdict.decision import FINE_TUNE, SIGNIFICANT
from tuner.verdict.result import Best, Verdict, bundle_of

_TEMPLATE = "report_template.html"
READ = (
    CONFIG_FILE,
    RESULT_FILE,
    STUDY_FILE,
    f"{DATA}/{MANIFEST}",
    f"{DATA}/{EVAL}",
    f"{BEST}/{RESULT_FILE}",
    f"{BEST}/{TRAIN_SCRIPT}",
    f"{part_name(BASE_FOLDER)}/{scores_file('dev')}",
)
"""What a report is written from, in a run directory: no weights, no training states."""


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
    page = environment().get_template(_TEMPLATE).render(_contents(run_dir, storage))
    write_text(run_dir / REPORT_FILE, page)
    return run_dir / REPORT_FILE


def _contents(run_dir: Path, storage: str | None) -> dict[str, Any]:
    """Everything that the template shows, by name."""
    config = yaml.safe_load((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    search, _ = read_studies(run_dir, storage or config["storage"], config.get("study_name"))
    made, result = search.get_trials(deepcopy=False), Verdict.read(run_dir)
    trials, slots = standings(made), config.get("concurrent_trials", 1)
    best = result.best if result else None
    manifest, metric = _json(run_dir / DATA / MANIFEST), Metric.read(config["metric"])
    scene = Scene(
        trials=trials,
        metric=metric.label,
        rungs=config["rungs"],
        best=best.trial if best else None,
        error=dev_error(run_dir, config["metric"]),
    )
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    return {
        "name": run_dir.resolve().name,
        "model": model_name(config.get("arguments", {})),
        "data": data_names(manifest),
        "today": datetime.date.today().isoformat(),
        "about": about(run_dir, config, manifest, search.user_attrs),
        "links": links(run_dir),
        "metric": metric.label,
        "is_dense": metric.heads == {"dense"},
        "result": result,
        "best": best,
        "fine_tune": result is not None and result.verdict == FINE_TUNE,
        "significant": SIGNIFICANT,
        "interval_width": findings.INTERVAL_WIDTH,
        "pictures": search_pictures(search, scene),
        "ended": how_they_ended(made),
        "slots": slots,
        "spent": findings.spent(result.seconds, slots) if result else [],
        "trials": [_trial_row(run_dir, trial, scene) for trial in trials],
        "parameter_names": names,
        "kept": kept_settings(config, names),
        "manifest": manifest,
        "search_command": elsewhere(config["command"]),
        "advice": advice(result, trials, config["rungs"], manifest) if result else [],
        **(_findings(run_dir, result, best, metric.label) if result and best else _NOTHING),
    }


_NOTHING: Mapping[str, Any] = {
    "alike": None,
    "facts": [],
    "gain_tone": "",
    "heads": [],
    "scale": [],
    "guarded": None,
    "parameters": [],
    "queries": {},
    "sides": [],
    "seeds": None,
    "train_script": "",
    "flags": "",
}


def _findings(run_dir: Path, result: Verdict, best: Best, metric: str) -> dict[str, Any]:
    """What there is to show of a search in which a trial was trained to its end."""
    keeps = result.verdict != FINE_TUNE
    sides = [("gained", "Gained most"), ("lost", "Lost most")]
    return {
        "alike": result.base.encoded_as_best if result.base else None,
        "facts": findings.facts(result, best),
        "gain_tone": findings.tone(best),
        "heads": findings.heads(result, best),
        "scale": findings.scale(result),
        "guarded": findings.guarded(result, best),
        "parameters": findings.searched(result, best),
        "queries": moved_queries(eval_path(run_dir), result.queries),
        "sides": sides[::-1] if keeps else sides,
        "seeds": seeds_picture(result.finalists, result.compared.dev if result.compared else None, metric),
        "train_script": _train_script(run_dir, result),
        "flags": " \\\n".join(f"--{name} {value}" for name, value in best.params.items()),
    }


def _trial_row(run_dir: Path, trial: Standing, scene: Scene) -> dict[str, Any]:
    return {**vars(trial), "kind": scene.kind(trial), "log": log_of(run_dir, trial.number)}


def _train_script(run_dir: Path, result: Verdict) -> str:
    """The text of the bundle's train.sh; empty where there is none."""
    bundle = bundle_of(run_dir, result)
    there = bundle is not None and (bundle / TRAIN_SCRIPT).is_file()
    return (bundle / TRAIN_SCRIPT).read_text(encoding="utf-8") if bundle and there else ""


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
