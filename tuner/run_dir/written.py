"""What in a run directory is the program's: that, and nothing else, is ever moved, replaced or removed.

Files are known by their content, those of ``data/`` and ``best/`` by the manifests that were written beside them, and
those of a trial, with its curves, by their names.
"""

import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainables.files import files_in, listed, prune, remove_folder
from trainables.names import CHECKPOINT, CURVES, DATA, MLFLOW, RESUME, TOKENS, is_trial_file
from tuner.errors import RequestError
from tuner.run_dir.names import (
    ARRIVING,
    BEST,
    CONFIG_FILE,
    ENTRIES,
    EVAL,
    EXAMPLE,
    EXAMPLE_FILE,
    GUARDS,
    LIVE_PAGE,
    MANIFEST,
    PAGES,
    RAY,
    REPORT_FILE,
    RESULT_FILE,
    SETTINGS,
    SETTINGS_SUFFIXES,
    STATUS,
    STUDY_FILE,
    TRAIN,
    TRIALS,
    is_trial,
    settings_name,
)

_FOLDERS = (DATA, *(f"{DATA}/{part}" for part in (TRAIN, EVAL, GUARDS, EXAMPLE)), TRIALS, BEST, SETTINGS)
_TOKENS = re.compile(r"[0-9a-f]{24}(\.lock)?")
_BEIR = frozenset({"corpus.jsonl", "queries.jsonl", "qrels/dev.tsv", "qrels/test.tsv"})
_EXAMPLE = frozenset({EXAMPLE_FILE, *(f"{EVAL}/{name}" for name in _BEIR)})
_REPORT = ('<meta name="generator" content="M3 tuner">', "--ink: #1f2933; --muted: #5c6873")
"""Signs of a page: of one of today, and of one that was written before it had a sign."""
_EVENTS = "events.out.tfevents.*"
_SQLITE = b"SQLite format 3\0"
_CONFIG_KEYS = {"arguments", "num_trials"}


def written(run_dir: Path) -> list[str]:
    """Returns the files that are the program's, relative to the run directory, and folders that are so as a whole."""
    found = [name for name in (CONFIG_FILE, *PAGES) if _is_ours(run_dir, name)]
    found += _database(run_dir, STUDY_FILE)
    found += [RAY] if (run_dir / RAY).is_dir() else []
    found += _below(run_dir, DATA, data_files(run_dir / DATA))
    found += _below(run_dir, SETTINGS, _settings(run_dir / SETTINGS))
    found += _below(run_dir, TRIALS, _trial_files(run_dir / TRIALS))
    found += _below(run_dir, BEST, _listed_files(run_dir / BEST))
    found += _below(run_dir, CURVES, _curves(run_dir / CURVES))
    found += _database(run_dir, MLFLOW)
    return found


def in_the_way(run_dir: Path) -> list[str]:
    """Returns what is not the program's and stands where a search would write, relative to the run directory.

    A study.db that is no database is not written to: whoever opens it as a study is told that it is damaged.
    """
    found = [name for name in (CONFIG_FILE, *PAGES) if is_foreign(run_dir, name)]
    found += [STUDY_FILE] if is_foreign(run_dir, STUDY_FILE) and _is_database(run_dir / STUDY_FILE) else []
    found += [name for name in _FOLDERS if (run_dir / name).exists() and not (run_dir / name).is_dir()]
    data, best = run_dir / DATA, run_dir / BEST
    if (data / MANIFEST).exists() and not _is_manifest(data / MANIFEST):
        found.append(f"{DATA}/{MANIFEST}")
    if best.is_dir() and files_in(best) and listed(best) is None:
        found.append(BEST)
    return found


def links_out(run_dir: Path) -> list[str]:
    """Returns what a search writes to and is a link that leads out of the run directory, relative to that."""
    root = run_dir.resolve()
    places = [run_dir / name for name in ENTRIES]
    places += [entry for folder in (DATA, TRIALS) for entry in _entries(run_dir / folder)]
    places += [entry for trial in _entries(run_dir / TRIALS) if is_trial(trial.name) for entry in _entries(trial)]
    links = [place for place in places if place.is_symlink() and not place.resolve().is_relative_to(root)]
    return [str(link.relative_to(run_dir)) for link in links]


def holds_trials(run_dir: Path) -> bool:
    """Returns whether trials have begun in the directory; their study may lie elsewhere."""
    return any(is_trial(entry.name) and entry.is_dir() for entry in _entries(run_dir / TRIALS))


def looks_like_search(folder: Path) -> bool:
    """Returns whether a search of a version that left no mark has written the folder."""
    if not _is_ours(folder, CONFIG_FILE):
        return False
    return _is_manifest(folder / DATA / MANIFEST) or _is_ours(folder, STUDY_FILE) or holds_trials(folder)


def data_files(data: Path) -> set[str]:
    """Returns the program's files in RUN/data, relative to it, by the manifests there."""
    names = {name for name in (MANIFEST, ARRIVING) if _is_manifest(data / name)}
    here = files_in(data)
    for manifest in list(names):
        names |= set(_in_manifest(json.loads((data / manifest).read_text("utf-8")))) & here
    for folder, known in [(data / EXAMPLE, _EXAMPLE), *((guard, _BEIR) for guard in _entries(data / GUARDS))]:
        names |= {f"{folder.relative_to(data).as_posix()}/{name}" for name in _of_copy(folder, known, data.parent)}
    names |= {name for name in here if name.startswith(".new/")}
    return names | {name for name in here if name.startswith(f"{TOKENS}/") and _TOKENS.fullmatch(name.split("/")[1])}


def require_ours(folder: Path) -> None:
    """Refuses to replace a folder that lists no files of ours.

    Raises:
        RequestError: It is there, holds something, and no search wrote it.
    """
    if os.path.lexists(folder) and listed(folder) is None and not (folder.is_dir() and not files_in(folder)):
        raise RequestError([no_search_wrote(folder)])


def no_search_wrote(path: Path) -> str:
    """Returns why a search cannot write to a place."""
    return f"{path} stands where the search writes, and no search wrote it; move it, or name another --run_dir"


def remove(run_dir: Path, names: list[str]) -> None:
    """Removes what `written` has named, and the folders that hold nothing then."""
    for name in names:
        if (run_dir / name).is_dir():
            remove_folder(run_dir / name)
        else:
            (run_dir / name).unlink(missing_ok=True)
    prune(run_dir, names)


def move(names: list[str], source: Path, target: Path) -> None:
    """Moves what `written` has named in `source` to the same places in `target`, where nothing of these names is."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).rename(target / name)
    prune(source, names)


def _below(run_dir: Path, folder: str, names: set[str]) -> list[str]:
    return [] if (run_dir / folder).is_symlink() else sorted(f"{folder}/{name}" for name in names)


def _database(run_dir: Path, name: str) -> list[str]:
    """A database that is ours, and what SQLite keeps beside it."""
    beside = (f"{name}{end}" for end in ("", "-journal", "-wal", "-shm"))
    return [each for each in beside if (run_dir / each).exists()] if _is_ours(run_dir, name) else []


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_ours(run_dir: Path, name: str) -> bool:
    path = run_dir / name
    if not path.is_file():
        return False
    with suppress(OSError, ValueError, RecursionError):
        return _KINDS[name](path)
    return False


def is_foreign(run_dir: Path, name: str) -> bool:
    """Returns whether config.yaml, result.json, report.html or study.db is there and not the program's."""
    return (run_dir / name).exists() and not _is_ours(run_dir, name)


def _is_config(path: Path) -> bool:
    import yaml  # data are checked where no package is installed

    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError:
        return False
    return isinstance(values, dict) and isinstance(values.get("arguments"), dict) and values.keys() >= _CONFIG_KEYS


def _is_result(path: Path) -> bool:
    values = json.loads(path.read_text("utf-8"))
    return isinstance(values, dict) and values.keys() >= {"metric", "verdict", "base", "best", "trials"}


def _is_status(path: Path) -> bool:
    values = json.loads(path.read_text("utf-8"))
    return isinstance(values, dict) and values.keys() >= {"state", "sentence", "metric", "trials"}


def _is_report(path: Path) -> bool:
    text = path.read_text("utf-8")
    return any(sign in text for sign in _REPORT)


def _is_study(path: Path) -> bool:
    """Whether it is a database of Optuna's, or one in which a kill kept every table from being made."""
    with path.open("rb") as file:
        head = file.read(2**20)
    return not head or (head.startswith(_SQLITE) and (b"CREATE TABLE studies" in head or b"CREATE TABLE" not in head))


def _is_mlflow(path: Path) -> bool:
    """Whether it is a database of MLflow's with no experiment but this run directory's and the one it begins with."""
    uri = f"file:{quote(str(path))}?immutable=1"
    with suppress(sqlite3.Error), closing(sqlite3.connect(uri, uri=True)) as database:
        names = {name for (name,) in database.execute("select name from experiments")}
        return path.parent.name in names <= {path.parent.name, "Default"}
    return False


def _is_database(path: Path) -> bool:
    if not path.is_file():
        return True  # a folder, or a link to nowhere
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


_KINDS = {
    CONFIG_FILE: _is_config,
    RESULT_FILE: _is_result,
    REPORT_FILE: _is_report,
    LIVE_PAGE: _is_report,
    STATUS: _is_status,
    STUDY_FILE: _is_study,
    MLFLOW: _is_mlflow,
}


def _is_manifest(path: Path) -> bool:
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_text("utf-8"))
        return isinstance(values, dict) and values.keys() >= {"hash", "train", "eval", "rows"}
    return False


def _in_manifest(manifest: dict[str, Any]) -> Iterator[str]:
    for source in manifest["train"]:
        for file in source["files"]:
            yield source["path"]
            yield f"{source['path']}/{file['name']}"
    for name in manifest["eval"]["files"]:
        yield f"{EVAL}/{name}"


def _of_copy(folder: Path, known: frozenset[str], run_dir: Path) -> set[str]:
    """The program's files of a copy of data: those that it lists; where it lists none, those that config.yaml means."""
    names = listed(folder)
    return (files_in(folder) & known if _is_asked_for(folder, run_dir) else set()) if names is None else names


def _is_asked_for(folder: Path, run_dir: Path) -> bool:
    if not folder.is_dir() or not _is_ours(run_dir, CONFIG_FILE):
        return False
    import yaml

    asked = yaml.safe_load((run_dir / CONFIG_FILE).read_text("utf-8"))
    if folder.name == EXAMPLE:
        return f"{DATA}/{EXAMPLE}/{EXAMPLE_FILE}" in str(asked["arguments"].get("train_data"))
    return folder.name in {Path(str(guard)).name for guard in asked.get("guard") or ()}


def _settings(folder: Path) -> set[str]:
    files = [path for path in _entries(folder) if path.is_file() and path.suffix in SETTINGS_SUFFIXES]
    return {path.name for path in files if path.name == settings_name(path)}


def _trial_files(trials: Path) -> set[str]:
    names: set[str] = set()
    for trial in _entries(trials):
        if not is_trial(trial.name) or trial.is_symlink() or not trial.is_dir():
            continue
        found = {entry.name for entry in trial.iterdir() if is_trial_file(entry.name)}
        found |= {name for name in (RESUME, f".{CHECKPOINT}.tmp", f".{CHECKPOINT}.old") if (trial / name).is_dir()}
        found |= {f"{CHECKPOINT}/{name}" for name in _listed_files(trial / CHECKPOINT)} or (
            {CHECKPOINT} if (trial / CHECKPOINT).is_dir() else set()
        )
        names |= {f"{trial.name}/{name}" for name in found}
        names |= set() if files_in(trial) or found else {trial.name}
    return names


def _curves(folder: Path) -> set[str]:
    trials = [trial for trial in _entries(folder) if is_trial(trial.name) and not trial.is_symlink()]
    return {f"{trial.name}/{entry.name}" for trial in trials for entry in trial.glob(_EVENTS) if entry.is_file()}


def _listed_files(folder: Path) -> set[str]:
    return listed(folder) or set()
