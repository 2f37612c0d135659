"""``python -m tuner.search``: from the command line to a search that is planned, and may run.

Optuna, and Ray and torch after it, are imported where a step needs them first: `--help`, a wrong flag and `--submit`
take no seconds, and data that are refused load no Ray.
"""

import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tuner.cluster.submit import refuse_shown_secrets, submit
from tuner.errors import (
    EXIT_ALL_FAILED,
    EXIT_DONE,
    EXIT_REQUEST,
    EXIT_STOPPED,
    AllTrialsFailedError,
    AnotherSearchError,
    BundleRefusedError,
    RequestError,
    counted,
)
from tuner.interrupts import Interrupted, interrupting
from tuner.planning.caches import writable_caches
from tuner.planning.own_checks import has_gpu, libraries_agree, machine
from tuner.request.asked import write_config
from tuner.request.command_line import parse
from tuner.request.config import SearchConfig, new_run_dir
from tuner.request.config_file import keep
from tuner.run_dir.object_storage import is_url
from tuner.run_dir.ownership import held, scratch
from tuner.run_dir.store import open_run_dir
from tuner.search.place import example, require_place, require_study_of, room, same_request
from tuner.search.session import Session
from tuner.search.terminal import new_console, say
from tuner.versions import versions

if TYPE_CHECKING:
    from trainables.config import Train
    from tuner.planning.plan import Plan


def main(argv: Sequence[str] | None = None, *, train: "Train | None" = None) -> int:
    """Runs the command, with `train` as for `run_search`; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    console, errors = new_console(), new_console(stderr=True)
    try:
        config = parse(arguments)
        if config.submit:
            return submit(config.submit, arguments)
        with interrupting():
            run_search(config, arguments, console, train=train)
    except RequestError as error:
        for finding in error.findings:
            say(errors, f"error: {finding}")
        return EXIT_REQUEST
    except AllTrialsFailedError as error:
        say(errors, str(error))
        return EXIT_ALL_FAILED
    except BundleRefusedError as error:
        say(errors, f"error: {error}")
        return EXIT_STOPPED
    except Interrupted as interrupted:
        if not interrupted.told:
            say(errors, interrupted.farewell)
        return interrupted.exit_code
    return EXIT_DONE


def run_search(
    config: SearchConfig, argv: Sequence[str] | None, console: Console, *, train: "Train | None" = None
) -> Path:
    """Runs the search `config`; returns its run directory.

    Args:
        config: What is asked.
        argv: The command line it came from, for the record; None: it came from Python.
        console: Where progress is shown.
        train: What does a job; None: `trainables.worker.train_trial`.

    Raises:
        Interrupted: It was told to end, or the machine cannot go on.
        RequestError: The request or the data is wrong.
        AllTrialsFailedError: No trial could be trained.
        BundleRefusedError: A library does not embed with the best model as training did; the search is finished.
    """
    started = time.monotonic()
    refuse_shown_secrets(config, argv or ())
    named = config.resume or new_run_dir(config, time.strftime("%Y%m%d-%H%M%S"))
    store = open_run_dir(named if is_url(named) else str(Path(named).resolve()))  # workers stand in another directory
    session = Session(store=store, console=console, argv=argv, train=train, started=started)
    session.say(f"{versions()} on {machine(config)}")
    flag = require_place(config, store, argv)
    resumable = session.ending_in_order(config) if config.resume else nullcontext()
    is_held = held(store.local, flag, is_cache=store.is_remote, is_dry=config.dry_run)
    with is_held, store.held(), resumable, writable_caches(store.local) as moved:
        session.warn(moved)
        if config.resume:
            store.pull()
            require_study_of(config, store.local)
            _search(config, session)
        elif not _goes_on(config, session):
            _begin(config, session)
    return store.local


def _goes_on(config: SearchConfig, session: Session) -> bool:
    """Goes on with the search that the directory holds, where this is the same request; returns whether it was.

    FlagEmbedding's published lines carry ``--overwrite_output_dir``: run again after Ctrl-C, they lose nothing.
    """
    store = session.store
    asked, differing = same_request(config, store)
    if asked is not None:
        session.say(f"{store.url} holds the search of this request: going on with it, as --resume does")
        try:
            with session.ending_in_order(asked):
                _search(asked, session)
        except AnotherSearchError as error:
            differing = [line.removeprefix("--resume: ").partition(";")[0] for line in error.findings]
        else:
            return True
    if differing and not store.is_remote:
        session.say(f"{store.url} holds the search of another request: {'; '.join(differing)}")
    return False


def _begin(config: SearchConfig, session: Session) -> None:
    """Begins a search where there is none, or where the one that is there is to make room."""
    run_dir = session.store.local
    making = room(config, session.store)
    place = scratch(run_dir) if config.dry_run else nullcontext()
    with nullcontext() if config.dry_run else making, place as folder:  # a plan moves nothing
        if config.is_example:
            config = example(config, folder or run_dir)
        _search(config, session, folder)


def _search(config: SearchConfig, session: Session, scratch: Path | None = None) -> None:
    """Plans a search, and runs it where it is not only to be planned."""
    plan = _planned(config, session, scratch)
    if not config.dry_run:
        kept = keep(plan.config, plan.run_dir)
        write_config(kept, plan.run_dir, session.argv)
    _say_plan(plan, session)
    if config.dry_run:
        _say_estimate(plan, session)
        return
    from tuner.search.driver import drive

    drive(plan, session)


def _planned(config: SearchConfig, session: Session, scratch: Path | None) -> "Plan":
    from tuner.planning.plan import make_plan

    run_dir = session.store.local
    config = _with_study_name(config, run_dir)
    with nullcontext() if session.train else libraries_agree(config, gpu=has_gpu(config)):
        return make_plan(config, run_dir, session.say, scratch=scratch)


def _with_study_name(config: SearchConfig, run_dir: Path) -> SearchConfig:
    """A storage that others use as well gets a study of this search's own."""
    if config.storage is None or config.study_name is not None or config.resume:
        return config
    return config.replace(study_name=f"{run_dir.name}-{secrets.token_hex(4)}")


def _say_plan(plan: "Plan", session: Session) -> None:
    session.warn(plan.warnings)
    slots = plan.config.concurrent_trials
    session.say(_split(plan.dataset.manifest, used=plan.context.rows))
    for note in plan.notes:
        session.say(note)
    trials = f"the base model and {counted(plan.config.num_trials - 1, 'trial')}"
    pace = f"{slots} at a time" if slots > 1 else "one by one"
    session.say(f"{trials}, {pace}, judged by {plan.config.metric} on dev; run directory {plan.run_dir}")
    for lesson in plan.lessons:
        session.say(lesson.sentence(plan.config.sampler))


def _split(manifest: Mapping[str, Any], *, used: int) -> str:
    """What the rows are used for, and what training does without; `used` of them train each trial."""
    rows, held, judged = manifest["rows"], manifest.get("held_out_rows", 0), manifest["eval"]
    queries = f"{judged['queries']['dev']:,} dev and {counted(judged['queries']['test'], 'test query')}"
    if not held:
        train = f"{used:,} of them train" if used < rows else "all of which train"
        return f"{counted(rows, 'row')}, {train}; {queries} of {judged['origin']} {judged.get('name', '')}"
    train = f"{used:,} of {rows:,} train" if used < rows else f"{rows:,} train"
    return (
        f"{counted(rows + held, 'row')}: {train}, {held:,} are held out for {queries} (with --eval_data all rows train)"
    )


def _say_estimate(plan: "Plan", session: Session) -> None:
    from tuner.planning.estimate import describe

    for line in describe(plan):
        session.say(line)


if __name__ == "__main__":
    sys.exit(main())
