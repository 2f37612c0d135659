"""What a search ran on: model, data, dates, versions, machines, and the settings that it left alone."""

import datetime
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainables.names import LOG
from tuner.errors import counted
from tuner.run_dir.names import BEST, CONFIG_FILE, RESULT_FILE, part_name, trial_name
from tuner.run_dir.store import is_mirror
from tuner.study.trials import SESSIONS

_FOLDERS_SHOWN = 2
_NEW = "NEW_RUN_DIR"
_LINKED = (BEST, RESULT_FILE, CONFIG_FILE)


def model_name(arguments: Mapping[str, Any]) -> str:
    """Returns the base model's name on a hub, or its folder's last two names: the last is often only `model`."""
    named = str(arguments.get("model_name_or_path") or "BAAI/bge-m3")
    return "/".join(Path(named).parts[-_FOLDERS_SHOWN:]) if Path(named).is_absolute() else named


def data_names(manifest: Mapping[str, Any] | None) -> str:
    """Returns what the training data are called."""
    return ", ".join(source["name"] for source in manifest["sources"]) if manifest else "unknown data"


def about(
    run_dir: Path, config: Mapping[str, Any], manifest: Mapping[str, Any] | None, study_facts: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Returns a word and what it was, for all that makes a result another one.

    Args:
        run_dir: The run directory.
        config: What RUN/config.yaml holds.
        manifest: What RUN/data/manifest.json holds.
        study_facts: The study's attributes, the sessions of the search among them.
    """
    arguments, sessions = config.get("arguments", {}), study_facts.get(SESSIONS) or []
    model = str(arguments.get("model_name_or_path") or "BAAI/bge-m3")
    return [
        ("Base model", model),
        ("Data", _data(manifest)),
        ("Searched", f"{config['metric']} on dev, seed {config['seed']}, {config['num_trials']} trials planned"),
        *_sessions(sessions),
        ("Report written", _date(datetime.datetime.now().astimezone().isoformat())),
        ("Run directory", str(run_dir.resolve())),
    ]


def lies_beside(run_dir: Path, name: str) -> bool:
    """Returns whether a file or folder of the run directory is found from the page; a bucket calls it otherwise."""
    return (run_dir / name).exists() and not is_mirror(run_dir)


def links(run_dir: Path) -> list[str]:
    """Returns what of the run directory lies beside the page and is worth opening."""
    return [f"{name}/" if (run_dir / name).is_dir() else name for name in _LINKED if lies_beside(run_dir, name)]


def log_of(run_dir: Path, trial: int) -> str:
    """Returns where a trial's log lies, seen from the page; empty where the page has none beside it."""
    name = f"{part_name(trial_name(trial))}/{LOG}"
    return name if lies_beside(run_dir, name) else ""


def kept_settings(config: Mapping[str, Any], searched: Sequence[str]) -> list[tuple[str, Any]]:
    """Returns the arguments that the user gave and no trial varied."""
    given = config.get("arguments", {})
    return [(name, value) for name, value in sorted(given.items()) if name not in searched and value is not None]


def _data(manifest: Mapping[str, Any] | None) -> str:
    if manifest is None:
        return "no manifest was written"
    queries = manifest["eval"]["queries"]
    return (
        f"{data_names(manifest)}: {manifest['rows']:,} rows trained on; {queries['dev']} dev and "
        f"{queries['test']} test queries"
    )


def _sessions(sessions: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    if not sessions:
        yield "Ran on", "not recorded, by an earlier version"
        return
    last = sessions[-1]
    times = counted(len(sessions) - 1, "time")
    again = f", taken up again {times}, last {_date(last['began'])}" if len(sessions) > 1 else ""
    yield "Begun", f"{_date(sessions[0]['began'])}{again}"
    yield "Ran on", "; ".join(dict.fromkeys(f"{each['machines']}: {each['slots']}" for each in sessions))
    if last.get("pages"):
        yield "Live page", f"written {last['pages']} times, {1000 * last['page_seconds']:.0f} ms each (median)"
    yield "Versions", ", ".join(f"{name} {version}" for name, version in last["versions"].items())


def elsewhere(command: str) -> str:
    """Returns the command of a search with another run directory, as its own holds a search."""
    words, kept = iter(shlex.split(command)), []
    for word in words:
        name, equals, value = word.partition("=")
        if name.replace("-", "_") not in ("__run_dir", "__output_dir"):
            kept.append(word)
        elif "-again" in (value if equals else next(words, "")):
            return command  # of a search from Python, or a resumed one, it names another already
    return f"{shlex.join(kept)} --run_dir {_NEW}"


def _date(text: str) -> str:
    return datetime.datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z").strip()
