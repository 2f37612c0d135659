"""The model of an earlier search, judged beside the winner of this one: a search that began with `--again`.

The earlier model may have been trained on queries that the new data hold out. Those are left out of the comparison.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import TypeAdapter

from trainables.files import write_text
from trainables.names import CHECKPOINT, DATA, PREVIOUS, scores_file
from trainables.scoring.heldout import read_qrels, read_queries
from trainables.scoring.measures import Scores
from trainables.scoring.settings import UNTRAINED_ARGUMENTS
from tuner.data.splits import MIN_QUERIES, fingerprint
from tuner.errors import RequestError, counted
from tuner.request.asked import read_config
from tuner.run_dir.names import (
    PREVIOUS_FOLDER,
    TRAIN,
    eval_path,
    is_trial,
    trial_path,
)
from tuner.run_dir.object_storage import is_url
from tuner.run_dir.store import run_folder
from tuner.verdict.decision import KEEP, SIGNIFICANT, interval, is_certain
from tuner.verdict.result import Previous, Verdict, bundle_of
from tuner.verdict.statistics import compare

_OF_THIS_SEARCH = ("fp16", "bf16", "tf32", "model_name_or_path", "trust_remote_code")
"""Arguments of encoding that an earlier run does not decide: the precision of this machine, and whose code runs."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """The model of an earlier search, as it is to be scored; RUN/trials/0000-previous/previous.json holds it."""

    run_dir: str
    trial: int = 0
    weights: str | None = None
    """Its folder; None where there is none, for which `note` has the reason."""
    note: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What it encodes with."""
    seen: tuple[str, ...] | None = ()
    """Ids of test queries that it was trained or chosen on; None where nothing tells them any more."""


_VALUES = TypeAdapter(Earlier)
_UNREADABLE = (RequestError, OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError)
"""What reading a folder raises that anyone may have written: it costs the comparison, never the search."""


def earlier_model(again: str, run_dir: Path) -> Earlier:
    """Returns the model that the search in `again` recommends, and writes it down in `run_dir`, once.

    Args:
        again: The run directory of the earlier search, a path or a URL, whose model is brought here. Anyone may have
            written it: no code is taken from it.
        run_dir: That of this search, its data in place.
    """
    path = trial_path(run_dir, PREVIOUS_FOLDER) / PREVIOUS
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(dataclasses.asdict(_found(again, run_dir)), ensure_ascii=False))
    return _VALUES.validate_json(path.read_text("utf-8"))


def previous(run_dir: Path, best: str, metric: str, *, seed: int) -> Previous | None:
    """Returns what the earlier model scores on test beside the winner; None where the search did not begin `--again`.

    Args:
        run_dir: Holds trials/0000-previous, and the winner's scores in trials/`best`.
        best: The winner's folder.
        metric: The objective.
        seed: Seed of the resampling.
    """
    folder = trial_path(run_dir, PREVIOUS_FOLDER)
    if not (folder / PREVIOUS).is_file():
        return None
    earlier = _VALUES.validate_json((folder / PREVIOUS).read_text("utf-8"))
    known: dict[str, Any] = {"run_dir": earlier.run_dir, "trial": earlier.trial, "weights": earlier.weights}
    if earlier.weights is None:
        return Previous(**known, note=earlier.note)
    if not (folder / scores_file("test")).exists():
        return Previous(**known, note="its model could not be scored: its weights are gone, or do not load here")
    if earlier.seen is None:
        return Previous(**known, note="which queries its model was trained on is not known: its data cannot be read")
    before, after = (_values(trial_path(run_dir, name), metric) for name in (PREVIOUS_FOLDER, best))
    left = [query for query in before if query not in set(earlier.seen)]
    known["left_out"] = len(before) - len(left)
    if len(left) < MIN_QUERIES:
        note = f"{len(left)} of the {len(before)} test queries are new to its model, too few to compare on"
        return Previous(**known, note=note)
    old, new = ({query: values[query] for query in left} for values in (before, after))
    test, best_test = (float(np.mean(list(values.values()))) for values in (old, new))
    return Previous(**known, test=test, best_test=best_test, versus_best=compare(old, new, seed=seed))


def previous_notes(result: Verdict) -> list[str]:
    """Returns how the winner stands to the earlier search's model, in a sentence or two; none where there is none."""
    earlier = result.previous
    if earlier is None:
        return []
    gain = earlier.versus_best
    if gain is None:
        return [f"not compared with the earlier search in {earlier.run_dir}: {earlier.note}"]
    name = f"the earlier search's model ({earlier.run_dir}, trial {earlier.trial})"
    measured = (
        f"{earlier.best_test:.4f} against {earlier.test:.4f}, {gain.gain:+.4f} on {gain.queries} test queries "
        f"({interval(gain)}, p = {gain.p_value:.4f})"
    )
    left = (
        f"; left out: {counted(earlier.left_out, 'query')} that it was trained or chosen on" if earlier.left_out else ""
    )
    if is_certain(gain):
        return [f"the best trial is better than {name}: {measured}{left}"]
    if gain.ci95[1] < 0 and gain.p_value <= SIGNIFICANT:
        return [f"the best trial is worse than {name}, which lies in {earlier.weights}: {measured}{left}"]
    return [f"the best trial cannot be told from {name}: {measured}{left}"]


def _found(home: str, run_dir: Path) -> Earlier:
    try:
        again = run_folder(home) if is_url(home) else Path(home)
        result, config = Verdict.read(again), read_config(again)
    except _UNREADABLE:
        return Earlier(run_dir=home, note="its result.json and config.yaml are gone, or cannot be read")
    if result is None or result.best is None or not is_trial(result.best.folder):
        return Earlier(run_dir=home, note="it has no winner")
    if result.verdict == KEEP:
        return Earlier(run_dir=home, note="its verdict was to keep the base model")
    places = (bundle_of(again, result), trial_path(again, result.best.folder) / CHECKPOINT)
    weights = next((place for place in places if place and (place / "config.json").is_file()), None)
    if weights is None:
        return Earlier(run_dir=home, trial=result.best.trial, note="its model's weights are gone")
    asked = {**config.arguments, **result.best.params}
    names = (name for name in UNTRAINED_ARGUMENTS if name not in _OF_THIS_SEARCH)
    return Earlier(
        run_dir=home,
        trial=result.best.trial,
        weights=str(weights),
        settings={name: asked[name] for name in names if asked.get(name) is not None},
        seen=_seen(again, eval_path(run_dir)),
    )


def _seen(again: Path, eval_data: Path) -> tuple[str, ...] | None:
    """The test queries that stand in the earlier search's training rows or among its dev queries; None: nothing tells.

    Held-out queries and their passages are called by fingerprints of their texts, so that one which shares a positive
    with a training row is found, too. A BEIR folder's passages have names of their own, and may train.
    """
    rows = sorted((again / DATA / TRAIN).rglob("*.jsonl"))
    try:
        texts = [text for path in rows for row in _lines(path) for text in (row["query"], *row["pos"])]
        texts += read_queries(eval_path(again), read_qrels(eval_path(again), "dev")).values()
        known = {fingerprint(text).hex() for text in texts}
    except _UNREADABLE:
        return None
    if not rows:
        return None
    return tuple(sorted(_known(eval_data, known)))


def _known(eval_data: Path, known: Set[str]) -> set[str]:
    qrels = read_qrels(eval_data, "test")
    texts = read_queries(eval_data, qrels)
    return {
        query for query, judged in qrels.items() if fingerprint(texts[query]).hex() in known or _wants(judged, known)
    }


def _wants(judged: Mapping[str, int], known: Set[str]) -> bool:
    return any(score > 0 and passage in known for passage, score in judged.items())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _values(folder: Path, metric: str) -> Mapping[str, float]:
    scores = Scores.from_json((folder / scores_file("test")).read_text("utf-8"))
    return scores.with_metric(metric).per_query[metric]
