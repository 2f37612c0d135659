"""A search has ended: what is said and written, also where the bundle is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import tuner.api
import tuner.search.conclusion
import tuner.search.run
from tests.support.report_fixtures import build_run
from tuner.errors import EXIT_STOPPED, BundleRefusedError, RequestError
from tuner.request.config import SearchConfig

REFUSED = "the bundle was refused: an exported model must embed as it did in training"


def _refuse(*_: Any, **__: Any) -> Path:
    raise BundleRefusedError(REFUSED)


def test_a_refused_bundle_costs_neither_verdict_nor_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.search.conclusion.write_bundle", _refuse)
    run_dir, console = build_run(tmp_path / "run"), Console(record=True, width=200)
    (run_dir / "result.json").unlink()
    with pytest.raises(BundleRefusedError):
        tuner.search.conclusion.conclude(SearchConfig(), run_dir, console, seconds=1.0)
    said = console.export_text()
    assert "verdict     fine-tune" in said
    assert "train.sh" not in said
    assert f"python -m tuner.export {run_dir} --to DIR tries again" in said.replace("\n", "")
    assert (run_dir / "result.json").exists()
    assert "<html" in (run_dir / "report.html").read_text("utf-8")[:2000]


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (RequestError(["--deepspeed ds.json: not here; bring it back"]), RequestError, "--deepspeed ds.json"),
        (OSError(28, "No space left on device"), BundleRefusedError, "could not be written: .*No space left"),
    ],
)
def test_a_bundle_that_cannot_be_written_costs_neither(
    raised: Exception, expected: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Path:
        raise raised

    monkeypatch.setattr("tuner.search.conclusion.write_bundle", fail)
    run_dir, console = build_run(tmp_path / "run"), Console(record=True, width=200)
    with pytest.raises(expected, match=message):
        tuner.search.conclusion.conclude(SearchConfig(), run_dir, console, seconds=1.0)
    assert "verdict     fine-tune" in console.export_text()
    assert (run_dir / "report.html").exists()


@pytest.mark.parametrize("same", [True, False])
def test_the_bundle_of_an_earlier_winner_goes_when_the_new_one_is_refused(
    same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.search.conclusion.write_bundle", _refuse)
    run_dir = build_run(tmp_path / "run")
    result = json.loads((run_dir / "result.json").read_text())
    number, folder = result["best"]["trial"], result["best"]["folder"]
    (run_dir / "best").mkdir()
    earlier = result["best"] if same else {"trial": 1, "folder": "0001"}
    held = {"best": result["best"] | earlier, "recommended": {key: earlier[key] for key in ("trial", "folder")}}
    (run_dir / "best" / "result.json").write_text(json.dumps(result | held))
    with pytest.raises(BundleRefusedError):
        tuner.search.conclusion.conclude(SearchConfig(), run_dir, Console(record=True), seconds=1.0)
    assert number != 1
    found = tuner.api.load(run_dir).checkpoint
    assert found == (run_dir / "best" if same else run_dir / "trials" / folder / "checkpoint")
    assert (run_dir / "best").exists() == same


def test_a_refused_bundle_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tuner.search.run.run_search", _refuse)
    assert tuner.search.run.main([]) == EXIT_STOPPED
    assert capsys.readouterr().err == f"error: {REFUSED}\n"


def test_where_the_base_model_is_kept_no_trained_one_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.search.conclusion.write_bundle", lambda *_, **__: None)
    run_dir, console = build_run(tmp_path / "run", gain=0.001), Console(record=True, width=200)
    tuner.search.conclusion.conclude(SearchConfig(num_trials=12), run_dir, console, seconds=1.0)
    said = console.export_text()
    best = run_dir / "best"
    assert "verdict     keep the base model" in said
    assert f'use it      SentenceTransformer("{best}"), which is the base model' in said.replace("\n", "")
    assert "next        give more test queries (--eval_data)" in said
    assert f"python -m tuner.search --resume {run_dir} --num_trials 24" in said.replace("\n", "")
    assert "checkpoint" not in said
    assert "train.sh" not in said


def test_where_patience_ended_a_search_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.search.conclusion.write_bundle", lambda *_, **__: None)
    run_dir, console = build_run(tmp_path / "run", gain=0.001), Console(record=True, width=200)
    config = SearchConfig(num_trials=20, patience=5)
    tuner.search.conclusion.conclude(config, run_dir, console, seconds=1.0, by_patience=True)
    assert f"--resume {run_dir} --patience 20 (12 of 20 trials ran" in console.export_text().replace("\n", "")


def test_the_end_says_the_gain_over_base_and_over_yours_and_what_the_time_went_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.search.conclusion.write_bundle", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    run_dir, console = build_run(tmp_path / "run"), Console(record=True, width=200)
    tuner.search.conclusion.conclude(SearchConfig(), run_dir, console, seconds=40_000.0)
    said, result = console.export_text(), json.loads((run_dir / "result.json").read_text())
    for title, gain in (("over base", result["best"]), ("over yours", result["versus_user"])):
        low, high = gain["ci95"]
        told = f"{gain['gain']:+.4f}   95% interval {low:+.4f} to {high:+.4f}, p = {gain['p_value']:.4f}"
        assert re.search(rf"^{title} +{re.escape(told)}$", said, re.MULTILINE)
    assert 'use it      SentenceTransformer("run/best")\n' in said
    assert "retrain     bash run/best/train.sh\n" in said
    time = re.search(r"^time +11:06:40 = (.*)$", said, re.MULTILINE)
    assert time is not None
    assert sum(_seconds(part.rpartition(" ")[2]) for part in time[1].split(" + ")) == 40_000
    assert time[1].startswith("training ")
    assert " + start and rest " in time[1]


def _seconds(clock: str) -> int:
    return sum(int(digits) * 60**place for place, digits in enumerate(reversed(clock.split(":"))))


def test_a_notebook_shows_a_result_as_its_report(tmp_path: Path) -> None:
    result = tuner.api.load(build_run(tmp_path / "run"))
    assert result._repr_html_() is None  # no report yet: what Python prints of it is shown
    (result.run_dir / "report.html").write_text('<p title="a">0.5 > 0.4</p>', "utf-8")
    shown = result._repr_html_()
    assert shown is not None
    assert 'srcdoc="&lt;p title=&#34;a&#34;&gt;0.5 &gt; 0.4&lt;/p&gt;"' in shown
