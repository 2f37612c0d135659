"""Where a search goes: its place is the program's own, and what was there before it goes on, is kept, or is deleted."""

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rich.console import Console

from trainables.names import DATA
from tuner.errors import RequestError
from tuner.request.asked import changes, read_config
from tuner.request.config import SearchConfig
from tuner.run_dir.names import CONFIG_FILE, EXAMPLE
from tuner.run_dir.ownership import require_apart, require_ours
from tuner.run_dir.replaced import forget_replaced, holds_search, keep_replaced, set_aside
from tuner.run_dir.store import RunStore
from tuner.run_dir.written import holds_trials
from tuner.search.terminal import say


def require_place(config: SearchConfig, store: RunStore, argv: Sequence[str] | None) -> str:
    """Refuses a run directory that is somebody's, and inputs where it would be written to; returns its flag."""
    if config.resume and config.replace_search:
        raise RequestError(
            ["--resume goes on with a search, and --replace deletes it, but both are given; leave one out"]
        )
    named = "--output_dir" if config.arguments.get("output_dir") and not config.run_dir else "--run_dir"
    flag = "--resume" if config.resume else named
    if not store.is_remote:
        require_ours(store.local, flag)
        require_apart(store.local, list(_inputs(config, argv)), resumed=bool(config.resume))
    return flag


def same_request(config: SearchConfig, store: RunStore) -> tuple[SearchConfig | None, list[str]]:
    """Returns how to go on with the search that the directory holds, or None and what it was asked otherwise."""
    run_dir = store.local
    if not _overwrites(config) or config.replace_search:
        return None, []
    if not (store.pull([CONFIG_FILE]) if store.is_remote else holds_search(run_dir)):
        return None, []
    asked = example(config, run_dir, fresh=False) if config.is_example else config
    differing = changes(asked, run_dir)
    if differing or differing is None:
        return None, differing or []
    store.pull()
    asked = asked.replace(resume=store.url, study_name=read_config(run_dir).study_name)
    try:
        _require_study(asked, run_dir)
    except RequestError as error:
        return None, list(error.findings)
    return asked, []


def room(config: SearchConfig, store: RunStore) -> AbstractContextManager[None]:
    """Refuses a directory that holds a search, or sets that search aside where this was asked for.

    On object storage nothing is ever replaced.
    """
    run_dir = store.local
    if store.is_remote and store.pull([CONFIG_FILE]):
        raise RequestError([f"{store.url} holds a search already; --resume it, or name another prefix"])
    if not holds_search(run_dir):
        return nullcontext()
    if not (store.is_remote or config.replace_search or _overwrites(config)):
        raise RequestError(
            [
                f"{run_dir} holds a search already; --resume {run_dir} goes on with it, --overwrite_output_dir sets it "
                "aside for another request, --replace deletes it"
            ]
        )
    return set_aside(run_dir)


def make_room(config: SearchConfig, store: RunStore, console: Console) -> None:
    """The new request is good: keeps what was set aside for it, or deletes it where this was asked for.

    Of a search on object storage, what an earlier one has left on this disk alone is deleted.
    """
    if config.replace_search or store.is_remote:
        forget_replaced(store.local)
    elif kept := keep_replaced(store.local, time.strftime("%Y%m%d-%H%M%S")):
        line = f"the search before is kept: python -m tuner.search --resume {kept} goes on with it"
        say(console, line)


def example(config: SearchConfig, run_dir: Path, *, fresh: bool = True) -> SearchConfig:
    """Returns what the embedded example asks for, where `config` leaves it open.

    Its data are written into the run directory, unless they are there and not to be made `fresh`.
    """
    from tuner.data.example import example_arguments, example_paths, write_example

    train_data, eval_data = (write_example if fresh else example_paths)(run_dir / DATA / EXAMPLE)
    arguments = {**example_arguments(), "train_data": [str(train_data)], **config.arguments}
    return config.replace(arguments=arguments, eval_data=config.eval_data or str(eval_data))


def require_study_of(config: SearchConfig, run_dir: Path) -> None:
    """Refuses a search that holds trials where its study is not: they would begin anew in the same folders."""
    if holds_trials(run_dir):
        _require_study(config, run_dir)


def _require_study(config: SearchConfig, run_dir: Path) -> None:
    from tuner.study.storage import require_study
    from tuner.study.study import study_names

    require_study(config.storage, run_dir, study_names(config.study_name)[0])


def _overwrites(config: SearchConfig) -> bool:
    return bool(config.arguments.get("overwrite_output_dir"))


def _inputs(config: SearchConfig, argv: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    """Yields flag and path of what a search reads; some may be names of something else."""
    given = {name: config.arguments.get(name) for name in ("train_data", "model_name_or_path", "deepspeed")}
    given |= {
        "eval_data": config.eval_data,
        "guard": config.guard,
        "search_space": config.search_space,
        "again": config.again,
    }
    for name, value in given.items():
        for path in [value] if isinstance(value, str) else value or ():
            yield f"--{name}", str(path)
    for word, following in itertools.pairwise([*(argv or ()), ""]):
        flag, equals, path = word.partition("=")
        if flag == "--config":
            yield flag, path if equals else following
