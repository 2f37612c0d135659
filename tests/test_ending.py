"""A search has ended: what is said and written, also where the bundle is refused."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import tuner.ending
import tuner.search
from tests.report_fixtures import build_run
from tuner.config import SearchConfig
from tuner.errors import EXIT_STOPPED, BundleRefusedError

REFUSED = "the bundle was refused: an exported model must embed as it did in training"


def _refuse(*_: Any, **__: Any) -> Path:
    raise BundleRefusedError(REFUSED)


def test_a_refused_bundle_costs_neither_verdict_nor_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.ending.write_bundle", _refuse)
    run_dir, console = build_run(tmp_path / "run"), Console(record=True, width=200)
    (run_dir / "result.json").unlink()
    with pytest.raises(BundleRefusedError):
        tuner.ending.conclude(SearchConfig(), run_dir, console, seconds=1.0)
    said = console.export_text()
    assert "verdict     fine-tune" in said
    assert "train.sh" not in said
    assert f"python -m tuner.export {run_dir} --to DIR tries again" in said.replace("\n", "")
    assert (run_dir / "result.json").exists()
    assert "<html" in (run_dir / "report.html").read_text("utf-8")[:2000]


def test_a_refused_bundle_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tuner.search.run_search", _refuse)
    assert tuner.search.main([]) == EXIT_STOPPED
    assert capsys.readouterr().err == f"error: {REFUSED}\n"
