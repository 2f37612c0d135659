"""``python -m tuner.search``: from the command line to result.json."""

import fcntl
import secrets
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rich.console import Console

from tuner.cluster.submit import refuse_shown_secrets
from tuner.errors import (
    EXIT_ALL_FAILED,
    EXIT_DONE,
    EXIT_REQUEST,
    EXIT_STOPPED,
    AllTrialsFailedError,
    BundleRefusedError,
    RequestError,
    printable,
)
from tuner.interrupts import Interrupted, SearchStopped, interruptible, interrupting
from tuner.request.command_line import code_flags, parse
from tuner.request.config import SearchConfig, new_run_dir
from tuner.run_dir.object_storage import is_url
from tuner.run_dir.replaced import forget_replaced, holds_search, holds_trials, set_aside
from tuner.run_dir.store import RunStore, open_run_dir

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
    run_dir = store.local
    resumable = _ending_in_order(_again(store, config), console) if config.resume else nullcontext()
    with _held(run_dir), store.held(), resumable:
        if config.resume:
            store.pull()
        with _room(config, store):
            if config.is_example:
                config = _example(config, run_dir)
            _search(config, store, argv, console, started, train)
    return run_dir


def _search(
    config: SearchConfig,
    store: RunStore,
    argv: Sequence[str] | None,
    console: Console,
    started: float,
    train: "Train | None",
) -> None:
    from tuner.request.config_file import keep
    from tuner.search.plan import make_plan, write_config

    run_dir = store.local
    config = _with_study_name(config, run_dir)
    plan = make_plan(config, run_dir, lambda line: console.print(line, markup=False))
    config = plan.config
    if not (config.resume and config.dry_run):
        write_config(replace(plan, config=keep(config, run_dir)), argv)
    _say_plan(plan, console)
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
        forget_replaced(run_dir)
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
    from tuner.study.study import SearchStudy, require_untaken

    config = plan.config
    with readable(config.storage):
        if not config.resume:
            require_untaken(storage, config.study_name)
        study = SearchStudy(
            storage,
            space=plan.space,
            context=plan.context,
            sampler=config.sampler,
            pruner=config.pruner,
            seed=config.seed,
            num_trials=config.num_trials,
            objectives=config.objectives,
            guard_tolerance=config.guard_tolerance,
            name=config.study_name,
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


@contextmanager
def _held(run_dir: Path) -> Iterator[None]:
    """Holds the run directory; the lock dies with its process."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock: IO[str] = (run_dir / ".lock").open("w")
    except OSError as error:
        raise RequestError([f"--run_dir {run_dir}: cannot be written: {error.strerror}"]) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RequestError(
                [f"--run_dir {run_dir}: another search is running there; give another --run_dir"]
            ) from error
        yield


def _room(config: SearchConfig, store: RunStore) -> AbstractContextManager[None]:
    """Refuses a directory that holds a search, or with ``--overwrite_output_dir`` sets that search aside.

    On object storage nothing is ever replaced. A resumed search is refused where its study is not.
    """
    run_dir = store.local
    if config.resume:
        _require_study(config, run_dir)
        return nullcontext()
    replace = bool(config.arguments.get("overwrite_output_dir"))
    if store.is_remote:
        if store.pull(["config.yaml"]):
            raise RequestError([f"{store.url} holds a search already; --resume it, or name another prefix"])
        replace = True  # what an earlier search left on this disk alone
    if not holds_search(run_dir):
        return nullcontext()
    if not replace:
        raise RequestError(
            [
                f"{run_dir} holds a search already; "
                f"--resume {run_dir} goes on with it, --overwrite_output_dir replaces it"
            ]
        )
    return set_aside(run_dir)


def _require_study(config: SearchConfig, run_dir: Path) -> None:
    """Trials would begin anew in the folders of earlier ones."""
    from tuner.study.storage import require_study
    from tuner.study.study import study_names

    if holds_trials(run_dir):
        require_study(config.storage, run_dir, study_names(config.study_name)[0])


def _example(config: SearchConfig, run_dir: Path) -> SearchConfig:
    from tuner.data.example import example_arguments, write_example

    train_data, eval_data = write_example(run_dir / "data" / "example")
    arguments = {**example_arguments(), "train_data": [str(train_data)], **config.arguments}
    return config.replace(arguments=arguments, eval_data=config.eval_data or str(eval_data))


def _say_plan(plan: "Plan", console: Console) -> None:
    _warn(plan.warnings, console)
    queries = plan.dataset.manifest["eval"]["queries"]
    console.print(
        f"{plan.dataset.rows:,} training rows, {queries['dev']} dev and {queries['test']} test queries; "
        f"{plan.config.num_trials} trials, objective {plan.config.metric} on dev; run directory {plan.run_dir}",
        markup=False,
        soft_wrap=True,
    )


def _say_estimate(plan: "Plan", console: Console) -> None:
    from tuner.search.estimate import describe

    for line in describe(plan):
        console.print(line, markup=False, soft_wrap=True)


def _warn(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(f"warning: {printable(line)}", style="yellow", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
