"""The model of an earlier search beside the winner of one that began with `--again`."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from tests.support.report_fixtures import METRIC, build_run
from tests.support.storage_fixtures import stored
from trainables.scoring.measures import Scores
from tuner.data.splits import fingerprint
from tuner.request.config import SearchConfig
from tuner.run_dir.names import PREVIOUS_FOLDER
from tuner.verdict.decision import FINE_TUNE
from tuner.verdict.previous import earlier_model, previous, previous_notes
from tuner.verdict.result import Counts, Previous, Verdict
from tuner.verdict.statistics import compare

TEXTS = [f"What is number {number}?" for number in range(50)]


def _id(text: str) -> str:
    return fingerprint(text).hex()


def _write_eval(folder: Path, split: str, texts: list[str]) -> None:
    (folder / "qrels").mkdir(parents=True)
    rows = [json.dumps({"_id": _id(text), "text": text}) for text in texts]
    (folder / "queries.jsonl").write_text("\n".join(rows))
    judged = [f"{_id(text)}\t{_id(f'It is {text}')}\t1" for text in texts]
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A search that chose on query 0, trained on query 1 and on the positive of query 2."""
    run = build_run(tmp_path / "earlier", gain=0.2, seeds=1)
    asked = {"query_max_len": 48, "fp16": True, "trust_remote_code": True, "train_data": ["rows.jsonl"]}
    (run / "config.yaml").write_text(yaml.safe_dump(SearchConfig(arguments=asked).to_dict()))
    winner = json.loads((run / "result.json").read_text())["best"]["folder"]
    (run / "trials" / winner / "checkpoint").mkdir(parents=True)
    (run / "trials" / winner / "checkpoint" / "config.json").write_text("{}")
    shutil.rmtree(run / "data")
    _write_eval(run / "data" / "eval", "dev", TEXTS[:1])
    (run / "data" / "train").mkdir()
    rows = [{"query": TEXTS[1], "pos": ["One."], "neg": []}, {"query": "And 2?", "pos": [f"It is {TEXTS[2]}"]}]
    (run / "data" / "train" / "000-rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The new search: all of the texts are test queries, and its winner has 0.5 on each."""
    _write_eval(tmp_path / "new" / "data" / "eval", "test", TEXTS)
    _write_scores(tmp_path / "new", "0002", dict.fromkeys(TEXTS, 0.5))
    return tmp_path / "new"


def _write_scores(run: Path, folder: str, values: Mapping[str, float]) -> None:
    (run / "trials" / folder).mkdir(parents=True, exist_ok=True)
    scores = {_id(text): value for text, value in values.items()}
    text = Scores(split="test", per_query={METRIC: scores}, retrieved={query: [] for query in scores}).to_json()
    (run / "trials" / folder / "test.json").write_text(text)


def test_what_the_earlier_model_knows_is_left_out_of_the_comparison(earlier: Path, run: Path) -> None:
    """It has 1 on the three queries that it knows, and 0.25 or 0.5 on the 47 others, by turns."""
    found = earlier_model(str(earlier), run)
    assert found.weights is not None
    assert Path(found.weights).parent.parent == earlier / "trials"
    assert found.settings["query_max_len"] == 48
    assert not {"fp16", "trust_remote_code", "train_data", "learning_rate"} & found.settings.keys()
    assert found.seen == tuple(sorted(map(_id, TEXTS[:3])))
    values = {text: 1.0 if number < 3 else 0.25 * (1 + number % 2) for number, text in enumerate(TEXTS)}
    _write_scores(run, PREVIOUS_FOLDER, values)
    result = previous(run, "0002", METRIC, seed=0)
    assert result is not None
    assert result.versus_best is not None
    assert (result.note, result.left_out, result.best_test) == ("", 3, 0.5)
    assert result.test == pytest.approx((24 * 0.5 + 23 * 0.25) / 47)
    assert result.versus_best.queries == 47
    assert result.versus_best.gain == pytest.approx(23 * 0.25 / 47)


def _keep_base(earlier: Path) -> None:
    result = json.loads((earlier / "result.json").read_text())
    (earlier / "result.json").write_text(json.dumps(result | {"verdict": "keep the base model"}))


def _drop_weights(earlier: Path) -> None:
    for checkpoint in (earlier / "trials").glob("*/checkpoint"):
        shutil.rmtree(checkpoint)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_keep_base, "its verdict was to keep the base model"),
        (_drop_weights, "its model's weights are gone"),
        (shutil.rmtree, "its result.json and config.yaml are gone, or cannot be read"),
        (lambda earlier: shutil.rmtree(earlier / "data" / "train"), "which queries its model was trained on is not"),
        (lambda earlier: (earlier / "data" / "train" / "x.jsonl").write_text("[1]"), "which queries its model was"),
        (lambda _: None, "its model could not be scored"),
    ],
)
def test_why_there_is_no_comparison_is_said(
    change: Callable[[Path], object], said: str, earlier: Path, run: Path
) -> None:
    change(earlier)
    found = earlier_model(str(earlier), run)
    if found.seen is None:
        _write_scores(run, PREVIOUS_FOLDER, dict.fromkeys(TEXTS, 0.5))
    result = previous(run, "0002", METRIC, seed=0)
    assert result is not None
    assert result.versus_best is None
    assert said in result.note


def test_too_few_new_queries_are_not_compared_on(earlier: Path, run: Path) -> None:
    rows = [json.dumps({"query": text, "pos": ["It."]}) for text in TEXTS[:40]]
    (earlier / "data" / "train" / "001-more.jsonl").write_text("\n".join(rows))
    earlier_model(str(earlier), run)
    _write_scores(run, PREVIOUS_FOLDER, dict.fromkeys(TEXTS, 0.5))
    result = previous(run, "0002", METRIC, seed=0)
    assert result is not None
    assert result.note == "10 of the 50 test queries are new to its model, too few to compare on"
    assert result.left_out == 40


def test_a_search_of_its_own_has_no_earlier_model(run: Path) -> None:
    assert previous(run, "0002", METRIC, seed=0) is None


@pytest.mark.parametrize(
    ("old", "said"),
    [
        (0.25, "the best trial is better than the earlier search's model (runs/1, trial 7): 0.5000 against 0.2500"),
        (
            0.75,
            "the best trial is worse than the earlier search's model (runs/1, trial 7), which lies in runs/1/best: ",
        ),
        (0.5, "the best trial cannot be told from the earlier search's model (runs/1, trial 7): 0.5000 against 0.5000"),
    ],
)
def test_the_sentence_follows_the_interval(old: float, said: str) -> None:
    gain = compare({str(n): old for n in range(50)}, {str(n): 0.5 for n in range(50)}, seed=0)
    earlier = Previous(
        run_dir="runs/1", trial=7, weights="runs/1/best", left_out=3, test=old, best_test=0.5, versus_best=gain
    )
    counts = Counts(complete=1, pruned=0, failed=0)
    verdict = Verdict(
        metric=METRIC, verdict=FINE_TUNE, reason="", base=None, user=None, best=None, trials=counts, seconds={},
        previous=earlier,
    )  # fmt: skip
    (note,) = previous_notes(verdict)
    assert note.startswith(said)
    assert note.endswith("; left out: 3 queries that it was trained or chosen on")
    assert "on 50 test queries" in note


def test_the_earlier_search_may_lie_in_storage(
    earlier: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    stored(earlier, url := f"file://{tmp_path}/bucket/earlier")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    found = earlier_model(url, run)
    assert found.run_dir == url
    assert found.seen == tuple(sorted(_id(text) for text in TEXTS[:3]))
    assert found.weights is not None
    assert Path(found.weights).is_relative_to(tmp_path / "second")
    assert (
        earlier_model(f"{url}-away", tmp_path / "other").note
        == "its result.json and config.yaml are gone, or cannot be read"
    )
