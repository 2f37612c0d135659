"""A search on data that grew: it begins with the line of the one before, and is compared with what that found."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.m3_fixtures import make_model, make_rows


def _search(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tuner.search", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=cwd, check=False)


def _say_that_it_helped(run: Path) -> None:
    """Random weights hardly ever gain for certain: the winner is recommended all the same."""
    result = json.loads((run / "result.json").read_text())
    best = {name: result["best"][name] for name in ("trial", "folder")}
    changed: dict[str, Any] = {"verdict": "fine-tune", "recommended": {**best, "settings": {}}}
    (run / "result.json").write_text(json.dumps(result | changed))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_again_tests_the_earlier_model_too(tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    line = ["--model_name_or_path", str(model), "--train_data", str(rows), "--run_dir", "1", "--query_max_len", "16"]
    line += ["--num_trials", "2", "--finalists", "0", "--gpus_per_trial", "0", "--per_device_train_batch_size", "8"]
    first = _search(*line, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    _say_that_it_helped(tmp_path / "1")
    more = make_rows(tmp_path / "more.jsonl", rows=200)
    done = _search("--again", "1", "--train_data", str(more), "--run_dir", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = yaml.safe_load((tmp_path / "2" / "config.yaml").read_text())
    assert (asked["again"], asked["num_trials"], asked["arguments"]["query_max_len"]) == (str(tmp_path / "1"), 2, 16)
    assert f"learned from {tmp_path / '1'}" in done.stdout
    assert "the earlier search's model, test  complete" in done.stdout
    found = json.loads((tmp_path / "2" / "result.json").read_text())
    previous = found["previous"]
    assert (previous["run_dir"], previous["trial"], previous["note"]) == (str(tmp_path / "1"), 1, "")
    assert previous["versus_best"]["queries"] + previous["left_out"] == found["best"]["queries"] == 40
    assert previous["best_test"] - previous["test"] == pytest.approx(previous["versus_best"]["gain"])
    for told in (" ".join(done.stdout.split()), (tmp_path / "2" / "report.html").read_text()):
        assert "arlier search" in told
        assert f"{previous['best_test']:.4f} against {previous['test']:.4f}" in told
