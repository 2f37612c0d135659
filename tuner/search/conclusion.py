"""The end of a search: result.json, the bundle, the report, and the last lines on screen."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from trainables.files import remove_folder, write_text
from tuner.errors import BundleRefusedError, RequestError
from tuner.export.bundle import write_bundle
from tuner.report.page import write_report
from tuner.request.config import SearchConfig
from tuner.run_dir.names import bundle_of
from tuner.search.progress import shown
from tuner.study.study import read_studies
from tuner.verdict import result as verdict

RESULT_FILE = "result.json"


def conclude(config: SearchConfig, run_dir: Path, console: Console, *, seconds: float) -> None:
    """Judges a finished search and hands over what it found.

    Args:
        config: The search.
        run_dir: Its directory, the test scores of the base model and the winner in it.
        console: Where the verdict is said.
        seconds: Wall clock of the search, over all its sessions.

    Raises:
        BundleRefusedError: A library does not embed as training did, or the bundle could not be written; verdict and
            report are there all the same.
        RequestError: The bundle needs something that is not here any more; verdict and report are there too.
    """
    search, finalists = read_studies(run_dir, config.storage, config.study_name)
    result = verdict.judge(
        run_dir,
        search,
        finalists,
        metric=config.metric,
        seed=config.seed,
        total_seconds=seconds,
        guard=config.guard,
        tolerance=config.guard_tolerance,
    )
    write_text(run_dir / RESULT_FILE, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    refusal = _refusal(run_dir, result, trusted=bool(config.arguments.get("trust_remote_code")))
    _say(result, run_dir, console, refused=refusal is not None)
    _report(config, run_dir, console)
    if refusal:
        raise refusal


def _refusal(run_dir: Path, result: Mapping[str, Any], *, trusted: bool) -> BundleRefusedError | RequestError | None:
    """Writes the bundle, or returns why there is none: the verdict is to be said first. An earlier winner's goes."""
    try:
        write_bundle(run_dir, run_dir / "best", trust_remote_code=trusted)
    except (BundleRefusedError, RequestError) as error:
        refusal: BundleRefusedError | RequestError = error
    except OSError as error:
        refusal = BundleRefusedError(f"the bundle could not be written: {error}")
    else:
        return None
    if bundle_of(run_dir, result) is None:
        remove_folder(run_dir / "best")
    return refusal


def _report(config: SearchConfig, run_dir: Path, console: Console) -> None:
    try:
        write_report(run_dir, config.storage)
    except Exception as error:  # a picture that cannot be drawn must not cost a finished search
        console.print(
            f"warning: report.html could not be written ({type(error).__name__}: {error}); "
            f"try again with: python -m tuner.report {run_dir}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def _say(result: Mapping[str, Any], run_dir: Path, console: Console, *, refused: bool) -> None:
    def say(line: str, style: str = "") -> None:
        console.print(line, style=style, markup=False, soft_wrap=True)

    best, spent = result["best"], result["seconds"]
    low, high = best["ci95"]
    say("")
    say(f"verdict     {result['verdict']}", "bold green" if result["verdict"] == verdict.FINE_TUNE else "bold yellow")
    say(f"            {result['reason']}")
    say(f"{'':12}{'dev':>8}{'test':>8}   {verdict.metric_label(result['metric'])}")
    for name, title in (("base", "base model"), ("user", "your own"), ("best", "best")):
        if (model := result[name]) is not None:
            say(f"{title:<12}{_score(model['dev'])}{_score(model['test'])}   {_which(model)}")
    say(f"{'gain':<12}{'':>8}{best['gain']:>+8.4f}   95% interval {low:+.4f} to {high:+.4f}, p = {best['p_value']:.4f}")
    if result["ties"]:
        tied = ", ".join(map(str, result["ties"]))
        level = result["noise"] or 0.0
        say(f"tie         on dev with trial {tied}: their means are closer than the noise between seeds, {level:.4f}")
    for task, scores in (result["guard"] or {"tasks": {}})["tasks"].items():
        say(f"{'guard':<12}{_score(scores['base'])}{_score(scores['best'])}   {task}, base model and best")
    if best["alpha"] is not None:
        say(f"mixture     {result['mixtures']['reason']}")
    counts, parts = result["trials"], ("training", "scoring", "overhead")
    say(f"trials      {counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed")
    say(f"seconds     {spent['total']:.0f} in all: " + ", ".join(f"{spent[part]:.0f} {part}" for part in parts))
    say(f"checkpoint  {run_dir / 'trials' / best['folder'] / 'checkpoint' if refused else run_dir / 'best'}")
    say(f"report      {run_dir / 'report.html'}")
    if refused:
        say(f"export      python -m tuner.export {run_dir} --to DIR tries again")
    else:
        say(f"train again bash {run_dir / 'best' / 'train.sh'}")


def _score(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:>8.4f}"


def _which(model: Mapping[str, Any]) -> str:
    return f"trial {model['trial']}  {shown(model['params'])}".rstrip()
