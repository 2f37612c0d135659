"""Guard tasks, found and loaded before any trial starts: one that cannot be had is not found out hours later."""

from collections.abc import Sequence
from pathlib import Path

from trainables.files import new_folder
from tuner.data import beir
from tuner.data.findings import Findings
from tuner.data.inputs import local_copy
from tuner.errors import RequestError
from tuner.run_dir.names import task_name
from tuner.run_dir.safe_names import inside, is_passed_over
from tuner.run_dir.written import require_ours

SPLITS = ("test",)


def prepare(guard: Sequence[str], folder: Path, *, resumed: bool = False) -> tuple[str, ...]:
    """Checks what ``--guard`` names, and copies BEIR folders to where every worker sees them.

    Args:
        guard: BEIR folders or their URLs (of which the test split is scored), and names of mteb tasks.
        folder: RUN/data/guards.
        resumed: Whether the search goes on with what is there from before.

    Returns:
        The same guards as workers name them.

    Raises:
        RequestError: With everything that is wrong.
    """
    names = [task_name(item) for item in guard]
    problems = [f"--guard: two tasks are called {name}; rename one folder" for name in _repeated(names)]
    problems += [
        f"--guard {item}: a task is called by its folder's name, which must not begin with a dot or be empty or "
        f"temporary, but it is {name!r}; name a folder with a name"
        for item, name in zip(guard, names, strict=True)
        if not name or is_passed_over(name)
    ]
    if problems:
        raise RequestError(problems)
    found = []
    for item, name in zip(guard, names, strict=True):
        try:
            found.append(_prepared(item, inside(folder, name, f"--guard {item}"), resumed))
        except RequestError as error:
            problems += error.findings
    if problems:
        raise RequestError(problems)
    return tuple(found)


def _prepared(item: str, copy: Path, resumed: bool) -> str:
    if resumed and copy.is_dir():
        return str(copy)
    source = local_copy(item)
    if Path(source).is_dir():
        return _copied(Path(source), copy)
    _load_task(item)
    return item


def _copied(source: Path, copy: Path) -> str:
    findings = Findings()
    evaluation = beir.read(source, findings, splits=SPLITS, flag="--guard")
    if findings.counts()[0]:
        raise RequestError([str(finding) for finding in findings.all() if finding.fatal])
    require_ours(copy)
    with new_folder(copy) as folder:
        beir.write(evaluation, folder)
    return str(copy)


def _load_task(name: str) -> None:
    """mteb takes seconds to import, so a search whose guards are folders does not."""
    from trainables.scoring.mteb_judge import GuardUnavailable, guard_task, load_guard

    try:
        load_guard(guard_task(name))
    except ValueError as error:
        raise RequestError([f"--guard {name}: {error}"]) from error
    except GuardUnavailable as error:
        raise RequestError(
            [
                f"--guard {name}: {error}; load it once where the hub can be reached (HF_HOME names the cache to bring "
                "along), or give the path of a BEIR folder"
            ]
        ) from error


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
