"""``python -m tuner.search``: from the command line to result.json."""

import secrets
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tuner.cluster.submit import refuse_shown_secrets
from tuner.errors import (
    EXIT_ALL_FAILED,
    EXIT_DONE,
    EXIT_REQUEST,
    EXIT_STOPPED,
    AllTrialsFailedError,
    AnotherSearchError,
    BundleRefusedError,
    RequestError,
    printable,
)
from tuner.interrupts import Interrupted, SearchStopped, interruptible, interrupting
from tuner.request.command_line import code_flags, parse
from tuner.request.config import SearchConfig, new_run_dir
from tuner.run_dir.object_storage import is_url
from tuner.run_dir.ownership import held, scratch
from tuner.run_dir.store import RunStore, open_run_dir
from tuner.search.caches import writable_caches
from tuner.search.place import example, make_room, require_place, require_study_of, room, same_request

if TYPE_CHECKING:
    from trainables.config import Train
    from tuner.run_dir.mirror import Mirror
    from tuner.schedule.agenda import Agenda
    from tuner.schedule.retries import Failure
    from tuner.search.plan import Plan
    from tuner.study.patience import PatientStorage
    from tuner.study.study import SearchStudy


def main(argv: Sequence[str] | None = None, *, train: "Train | None" = None) -> int:
    """Runs the command, with `train` as for `run_search`; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    console = Console(highlight=False)
    errors = Console(stderr=True, highlight=False)
    try:
        config = parse(arguments)
        if config.submit:
            return _submit(config.submit, arguments)
        with interrupting():
            run_search(config, arguments, console, train=train)
    except RequestError as error:
        for finding in error.findings:
            errors.print(f"error: {finding}", markup=False, soft_wrap=True)
        return EXIT_REQUEST
    except AllTrialsFailedError as error:
        errors.print(str(error), markup=False, soft_wrap=True)
        return EXIT_ALL_FAILED
    except BundleRefusedError as error:
        errors.print(f"error: {error}", markup=False, soft_wrap=True)
        return EXIT_STOPPED
    except Interrupted as interrupted:
        if not interrupted.told:
            errors.print(interrupted.farewell, markup=False, soft_wrap=True)
        return interrupted.exit_code
    return EXIT_DONE


def _submit(address: str, argv: list[str]) -> int:
    from tuner.cluster.submit import submit

    return submit(address, argv)


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
    flag = require_place(config, store, argv)
    resumable = _ending_in_order(_again(store, config), console) if config.resume else nullcontext()
    is_held = held(store.local, flag, is_cache=store.is_remote, is_dry=config.dry_run)
    with is_held, store.held(), resumable, writable_caches(store.local) as moved:
        _warn(moved, console)
        if config.resume:
            store.pull()
            require_study_of(config, store.local)
            _search(config, store, argv, console, started, train)
        elif not _goes_on(config, store, argv, console, started, train):
            _begin(config, store, argv, console, started, train)
    return store.local


def _goes_on(
    config: SearchConfig,
    store: RunStore,
    argv: Sequence[str] | None,
    console: Console,
    started: float,
    train: "Train | None",
) -> bool:
    """Goes on with the search that the directory holds, where this is the same request; returns whether it was.

    FlagEmbedding's published lines carry ``--overwrite_output_dir``: run again after Ctrl-C, they lose nothing.
    """
    asked, differing = same_request(config, store)
    if asked is not None:
        _say(f"{store.url} holds the search of this request: going on with it, as --resume does", console)
        try:
            with _ending_in_order(_again(store, asked), console):
                _search(asked, store, argv, console, started, train)
        except AnotherSearchError as error:
            differing = [line.removeprefix("--resume: ").partition(";")[0] for line in error.findings]
        else:
            return True
    if differing and not store.is_remote:
        _say(f"{store.url} holds the search of another request: {'; '.join(differing)}", console)
    return False


def _begin(
    config: SearchConfig,
    store: RunStore,
    argv: Sequence[str] | None,
    console: Console,
    started: float,
    train: "Train | None",
) -> None:
    """Begins a search where there is none, or where the one that is there is to make room."""
    making = room(config, store)
    place = scratch(store.local) if config.dry_run else nullcontext()
    with nullcontext() if config.dry_run else making, place as folder:  # a plan moves nothing
        if config.is_example:
            config = example(config, folder or store.local)
        _search(config, store, argv, console, started, train, folder)


def _search(
    config: SearchConfig,
    store: RunStore,
    argv: Sequence[str] | None,
    console: Console,
    started: float,
    train: "Train | None",
    scratch: Path | None = None,
) -> None:
    from tuner.request.config_file import keep
    from tuner.search.own_checks import has_gpu, libraries_agree
    from tuner.search.plan import make_plan, write_config

    run_dir = store.local
    config = _with_study_name(config, run_dir)
    with nullcontext() if train else libraries_agree(config, gpu=has_gpu(config)):
        plan = make_plan(config, run_dir, lambda line: console.print(line, markup=False), scratch=scratch)
    config = plan.config
    if not config.dry_run:
        write_config(replace(plan, config=keep(config, run_dir)), argv)
    _say_plan(plan, console)
    _say_lessons(plan, console)
    if config.dry_run:
        _say_estimate(plan, console)
        return
    config = config.replace(guard=plan.guards)

    from trainables.worker.loop import train_trial
    from tuner.cluster.connection import connected, rays_folder, slots_for
    from tuner.cluster.executor import run_on_ray
    from tuner.cluster.staging import on_any_machine
    from tuner.run_dir.mirror import Mirror
    from tuner.schedule.agenda import Agenda
    from tuner.schedule.disk import trial_bytes
    from tuner.search.plan import honoured
    from tuner.search.progress import Progress

    storage = _open_storage(config, run_dir, console)
    study = _open_study(plan, storage)
    mirror, again = Mirror(store), _again(store, config)
    with (
        _ending_in_order(again, console),
        connected(config),
        _ending_in_order(again, console, mirror),  # before Ray is shut down: `ray job stop` waits for 3 s
        interruptible() as interruption,
    ):
        check = _checks(interruption, store)
        storage.check = check
        slots = slots_for(config, rays_folder(config, run_dir))
        make_room(config, store, console)
        arguments, warnings = honoured(plan.arguments, gpu=slots.gpus > 0)
        _warn(warnings, console)
        agenda = Agenda(
            config,
            study,
            run_dir=run_dir,
            arguments=arguments,
            eval_data=plan.dataset.eval_data,
            trial_bytes=trial_bytes(plan.weights_bytes),
            mirror=mirror,
        )
        mirror.begin()
        check()
        with Progress(agenda, console, planned=config.num_trials, rungs=len(config.rungs)):
            work = on_any_machine(plan.arguments, plan.config.model_name_or_path, store, train or train_trial)
            run_on_ray(agenda, slots, check, train=work)
        check()  # a signal that came after the last turn of Tune's loop
        mirror.finish()
        check()
        if not agenda.has_winner:
            raise _without_winner(agenda)
    if agenda.ended_early:
        console.print(f"patience: {agenda.ended_early}", markup=False, soft_wrap=True)
    _warn([note for note in (agenda.left_out, agenda.passed_over) if note], console)
    try:
        with _ending_in_order(again, console), interrupting():  # again: Ray has put handlers of its own in place
            from tuner.search.conclusion import conclude

            conclude(config, run_dir, console, seconds=max(study.spent, time.monotonic() - started))
    finally:
        mirror.finish()
    if store.is_remote:
        console.print(f"kept in     {store.url}", markup=False, soft_wrap=True)


def _checks(interruption: Callable[[], None], store: RunStore) -> Callable[[], None]:
    """What ends a running search: a signal, or another search that has taken its place."""

    def check() -> None:
        interruption()
        store.require_held()

    return check


def _with_study_name(config: SearchConfig, run_dir: Path) -> SearchConfig:
    """A storage that others use as well gets a study of this search's own."""
    if config.storage is None or config.study_name is not None or config.resume:
        return config
    return config.replace(study_name=f"{run_dir.name}-{secrets.token_hex(4)}")


def _open_storage(config: SearchConfig, run_dir: Path, console: Console) -> "PatientStorage":
    from tuner.study.patience import PatientStorage
    from tuner.study.storage import open_storage

    return PatientStorage(open_storage(config.storage, run_dir), say=lambda line: _warn([line], console))


def _open_study(plan: "Plan", storage: "PatientStorage") -> "SearchStudy":
    from tuner.search.plan import facts
    from tuner.study.storage import readable
    from tuner.study.strategy import strategy_of
    from tuner.study.study import SearchStudy, require_untaken

    config = plan.config
    with readable(config.storage):
        if not config.resume:
            require_untaken(storage, config.study_name)
        study = SearchStudy(
            storage,
            space=plan.space,
            context=plan.context,
            strategy=strategy_of(config),
            seed=config.seed,
            num_trials=config.num_trials,
            objectives=config.objectives,
            guard_tolerance=config.guard_tolerance,
            name=config.study_name,
            lessons=[lesson.to_dict() for lesson in plan.lessons],
        )
    study.claim(facts(config, plan.dataset))
    return study


def _again(store: RunStore, config: SearchConfig) -> str:
    """What follows ``--resume``."""
    return " ".join([store.url, *map(shlex.quote, code_flags(config))])


@contextmanager
def _ending_in_order(again: str, console: Console, mirror: "Mirror | None" = None) -> Iterator[None]:
    """Keeps what there is, and says once how to go on, when the block is interrupted."""
    try:
        yield
    except Interrupted as interrupted:
        if not interrupted.told:
            how = f"nothing that was finished is lost. Go on with: python -m tuner.search --resume {again}"
            console.print(f"{interrupted.farewell}; {how}", style="bold", markup=False, soft_wrap=True)
        interrupted.told = True
        if mirror is not None:
            mirror.leave()
        raise


def _without_winner(agenda: "Agenda") -> SearchStopped | AllTrialsFailedError:
    """Returns why nothing was trained: no time for it, or failures."""
    causes, left_out = agenda.causes, agenda.left_out
    if left_out and not causes:
        return SearchStopped(left_out)
    return AllTrialsFailedError("\n".join([grouped_causes(causes), *([left_out] if left_out else [])]))


def grouped_causes(failures: Sequence["Failure"]) -> str:
    """Returns the causes of all failures, the same ones once with their count and one traceback."""
    counts = Counter(failure.message for failure in failures)
    traces = {failure.message: failure.traceback for failure in failures}
    lines = [f"every trial failed ({len(failures)}):"]
    for message, count in counts.most_common():
        lines += [f"  {count} x {message}", *(f"      {line}" for line in traces[message].splitlines())]
    return "\n".join(lines)


def _say_plan(plan: "Plan", console: Console) -> None:
    _warn(plan.warnings, console)
    queries = plan.dataset.manifest["eval"]["queries"]
    console.print(
        f"{plan.dataset.rows:,} training rows, {queries['dev']} dev and {queries['test']} test queries; "
        f"{plan.config.num_trials} trials, objective {plan.config.metric} on dev; run directory {plan.run_dir}",
        markup=False,
        soft_wrap=True,
    )


def _say_lessons(plan: "Plan", console: Console) -> None:
    for lesson in plan.lessons:
        console.print(str(lesson), markup=False, soft_wrap=True)


def _say_estimate(plan: "Plan", console: Console) -> None:
    from tuner.search.estimate import describe

    for line in describe(plan):
        console.print(line, markup=False, soft_wrap=True)


def _say(line: str, console: Console) -> None:
    console.print(line, markup=False, soft_wrap=True)


def _warn(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(f"warning: {printable(line)}", style="yellow", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
