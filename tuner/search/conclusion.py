"""The end of a search: result.json, the bundle, the report, and the last lines on screen."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from trainables.files import remove_folder
from trainables.names import CHECKPOINT
from trainables.scoring.metric import Metric
from tuner.errors import AllTrialsFailedError, BundleRefusedError, RequestError
from tuner.export.bundle import write_bundle
from tuner.interrupts import SearchStopped
from tuner.report.page import write_report
from tuner.request.config import SearchConfig
from tuner.run_dir.names import BEST, REPORT_FILE, TRAIN_SCRIPT, trial_path
from tuner.schedule.agenda import Agenda
from tuner.schedule.retries import Failure
from tuner.search.dashboard_note import note_verdict
from tuner.search.next_steps import next_steps
from tuner.search.terminal import say
from tuner.search.wording import clock, shown
from tuner.study.study import read_studies
from tuner.study.trials import how_they_ended
from tuner.verdict.decision import FINE_TUNE, interval, range_notes, scored_on, sentence, settings_notes
from tuner.verdict.judge import judge
from tuner.verdict.previous import previous_notes
from tuner.verdict.result import Best, Model, Verdict, bundle_of
from tuner.verdict.time_spent import parts_of

_PARTS = {
    "scoring": "scoring on dev",
    "overhead": "loading and saving",
    "test": "final test",
    "rest": "start and rest",
}


def conclude(
    config: SearchConfig, run_dir: Path, console: Console, *, seconds: float, by_patience: bool = False
) -> None:
    """Judges a finished search and hands over what it found.

    Args:
        config: The search.
        run_dir: Its directory, the test scores of the base model and the winner in it.
        console: Where the verdict is said.
        seconds: Wall clock of the search, over all its sessions.
        by_patience: ``--patience`` ended it before all trials were made.

    Raises:
        BundleRefusedError: A library does not embed as training did, or the bundle could not be written; verdict and
            report are there all the same.
        RequestError: The bundle needs something that is not here any more; verdict and report are there too.
    """
    search, finalists = read_studies(run_dir, config.storage, config.study_name)
    result = judge(
        run_dir,
        search,
        finalists,
        metric=config.metric,
        seed=config.seed,
        total_seconds=seconds,
        guard=config.guard,
        tolerance=config.guard_tolerance,
        arguments=config.arguments,
    )
    result.write(run_dir)
    note_verdict(search, result)
    refusal = _refusal(run_dir, result, trusted=bool(config.arguments.get("trust_remote_code")))
    ended = how_they_ended(search.get_trials(deepcopy=False))
    _say(result, console, ended=ended, slots=config.concurrent_trials)
    _say_where(result, run_dir, console, config, refused=refusal is not None)
    home = _from_here(run_dir)
    for place, step in enumerate(next_steps(result, str(home), planned=config.num_trials, by_patience=by_patience)):
        say(console, f"{'' if place else 'next':<12}{step}")
    say(console, f"report      {home / REPORT_FILE}")
    _report(config, run_dir, console)
    if refusal:
        raise refusal


def without_winner(agenda: Agenda) -> SearchStopped | AllTrialsFailedError:
    """Returns why nothing was trained: no time for it, or failures."""
    causes, left_out = agenda.causes, agenda.left_out
    if left_out and not causes:
        return SearchStopped(left_out)
    return AllTrialsFailedError("\n".join([grouped_causes(causes), *([left_out] if left_out else [])]))


def grouped_causes(failures: Sequence[Failure]) -> str:
    """Returns the causes of all failures, the same ones once with their count and one traceback."""
    counts = Counter(failure.message for failure in failures)
    traces = {failure.message: failure.traceback for failure in failures}
    lines = [f"every trial failed ({len(failures)}):"]
    for message, count in counts.most_common():
        lines += [f"  {count} x {message}", *(f"      {line}" for line in traces[message].splitlines())]
    return "\n".join(lines)


def _refusal(run_dir: Path, result: Verdict, *, trusted: bool) -> BundleRefusedError | RequestError | None:
    """Writes the bundle, or returns why there is none: the verdict is to be said first. An earlier winner's goes."""
    try:
        write_bundle(run_dir, run_dir / BEST, trust_remote_code=trusted)
    except (BundleRefusedError, RequestError) as error:
        refusal: BundleRefusedError | RequestError = error
    except OSError as error:
        refusal = BundleRefusedError(f"the bundle could not be written: {error}")
    else:
        return None
    if bundle_of(run_dir, result) is None:
        remove_folder(run_dir / BEST)
    return refusal


def _report(config: SearchConfig, run_dir: Path, console: Console) -> None:
    try:
        write_report(run_dir, config.storage)
    except Exception as error:  # a picture that cannot be drawn must not cost a finished search
        say(
            console,
            f"warning: report.html could not be written ({type(error).__name__}: {error}); "
            f"try again with: python -m tuner.report {run_dir}",
            "yellow",
        )


def _say(result: Verdict, console: Console, *, ended: str, slots: int) -> None:
    """Says the verdict and what it rests on; `ended` is how the trials did."""
    best, tell = result.best, partial(say, console)
    assert best is not None, "a search without a winner has no conclusion"
    tell("")
    tell(f"verdict     {result.verdict}", "bold green" if result.verdict == FINE_TUNE else "bold yellow")
    for line in [result.reason, *map(sentence, [*settings_notes(result), *previous_notes(result)])]:
        tell(f"            {line}")
    for line in _scores(result):
        tell(line)
    if result.ties:
        tied = ", ".join(map(str, result.ties))
        noise = result.noise
        how = f"their means are closer than the noise between seeds, {noise:.4f}" if noise else "the same score"
        tell(f"tie         on dev with trial {tied}: {how}")
    for note in range_notes(result.range_ends):
        tell(f"range       {note}")
    if best.alpha is not None and result.mixtures is not None:
        tell(f"mixture     {result.mixtures.reason}")
    if scored := scored_on(result):
        tell(f"scored      {scored}")
    tell(f"trials      {ended} (and the base model)")
    tell(f"time        {_time(result.seconds, slots)}")


def _scores(result: Verdict) -> Iterator[str]:
    """A row for each model, the base model first, and what the best has gained over others."""
    best, base = result.best, result.base
    assert best is not None, "a search without a winner has no conclusion"
    metric = Metric.read(result.metric).label
    width = max(14, len(metric) + 1)
    yield f"{metric:<{width}}{'dev':>8}{'test':>8}   settings"
    alike = base.encoded_as_best if base else None
    for title, model in (("base model", base), ("  as best", alike), ("your settings", result.user), ("best", best)):
        if model is not None:
            yield f"{title:<{width}}{_score(model.dev)}{_score(model.test)}   {_which(model)}"
    for title, gain in (("over base", best), ("over yours", result.versus_user)):
        if gain is not None:
            yield f"{title:<{width}}{'':>8}{gain.gain:>+8.4f}   {interval(gain)}, p = {gain.p_value:.4f}"
    if result.user is not None and result.user.trial == best.trial:
        yield f"{'over yours':<{width}}{'':>8}{'-':>8}   your settings are the best"
    yield f"{'queries':<{width}}{_moved(best)} than by the base model{' as best' if alike else ''}"
    for task, scores in (result.guard.tasks if result.guard else {}).items():
        yield f"{'guard':<{width}}{_score(scores.base)}{_score(scores.best)}   {task}, base model and best"


def _moved(best: Best) -> str:
    count = best.win_tie_loss
    return f"{count.tie:,} rank the same, {count.win:,} better and {count.loss:,} worse"


def _time(seconds: Mapping[str, float], slots: int) -> str:
    """The clock's time and its parts, rounded so that they sum to it."""
    said, passed = [], 0.0
    for name, spent in parts_of(seconds, slots).items():
        whole = round(passed + spent) - round(passed)
        passed += spent
        said += [f"{_PARTS.get(name, name)} {clock(whole)}"] if whole else []
    shared = f" ({slots} trials side by side: each part is its share of the clock)" if slots > 1 else ""
    return f"{clock(seconds['total'])} = {' + '.join(said)}{shared}"


def _say_where(result: Verdict, run_dir: Path, console: Console, config: SearchConfig, *, refused: bool) -> None:
    """Says where what the verdict recommends is found; a worse model is not offered."""
    best, tell, home = result.best, partial(say, console), _from_here(run_dir)
    assert best is not None, "a search without a winner has no conclusion"
    tuned = result.verdict == FINE_TUNE
    if refused:
        if tuned:
            tell(f"checkpoint  {trial_path(home, best.folder) / CHECKPOINT}")
        tell(f"export      python -m tuner.export {shlex.quote(str(home))} --to DIR tries again")
    else:
        tell(f'use it      SentenceTransformer("{home / BEST}"){"" if tuned else ", which is the base model"}')
    if tuned and not refused:
        tell(f"retrain     {_base_of(config)}bash {shlex.quote(str(home / BEST / TRAIN_SCRIPT))}")


def _base_of(config: SearchConfig) -> str:
    """What train.sh has to be told of a base model in a folder: it names no place itself."""
    folder = Path(config.model_name_or_path)
    return f"MODEL_NAME_OR_PATH={shlex.quote(str(_from_here(folder)))} " if folder.is_dir() else ""


def _from_here(path: Path) -> Path:
    """As it is typed where the search was started."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _score(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:>8.4f}"


def _which(model: Model) -> str:
    return f"trial {model.trial}  {shown(model.params)}".rstrip()
