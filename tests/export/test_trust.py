"""Runs that somebody else may have written: what they name is checked, and their code does not run unasked."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.export_fixtures import make_run
from tuner.api import load
from tuner.errors import EXIT_DONE, EXIT_REQUEST, RequestError
from tuner.export.bundle import best_arguments, write_bundle
from tuner.export.command import main
from tuner.export.finished_run import read_run

_CODE = """
from pathlib import Path
from transformers import XLMRobertaConfig, XLMRobertaModel

Path({mark!r}).touch()


class OtherConfig(XLMRobertaConfig):
    model_type = "other"


class OtherModel(XLMRobertaModel):
    config_class = OtherConfig
"""


def _record(run: Path, **values: Any) -> None:
    """Changes what trial 7 says of its arguments, or with a name that it has itself, of itself."""
    path = run / "trials" / "0007" / "config.json"
    record = json.loads(path.read_text())
    record |= {name: value for name, value in values.items() if name == "workers"}
    record["arguments"] |= {name: value for name, value in values.items() if name != "workers"}
    path.write_text(json.dumps(record))


@pytest.fixture
def run_with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose checkpoint has code that leaves the file `ran`, and whose record says to trust it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    run = make_run(tmp_path)
    checkpoint = run / "trials" / "0007" / "checkpoint"
    config = json.loads((checkpoint / "config.json").read_text())
    code = {"AutoConfig": "other.OtherConfig", "AutoModel": "other.OtherModel"}
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "other", "auto_map": code}))
    (checkpoint / "other.py").write_text(_CODE.format(mark=str(tmp_path / "ran")))
    _record(run, trust_remote_code=True)
    return run


def test_an_export_runs_no_code_of_the_run_directory_unasked(
    run_with_code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_with_code), "--to", str(tmp_path / "bundle")]) == EXIT_REQUEST
    assert "give --trust_remote_code again if you trust whoever can write there" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "bundle").exists()


def test_an_export_runs_it_where_the_flag_is_given(run_with_code: Path, tmp_path: Path) -> None:
    assert main([str(run_with_code), "--to", str(tmp_path / "bundle"), "--trust_remote_code"]) == EXIT_DONE
    assert (tmp_path / "ran").exists()
    assert (tmp_path / "bundle" / "other.py").is_file()
    assert "--trust_remote_code True" in (tmp_path / "bundle" / "train.sh").read_text()


def test_the_flag_alone_does_not_make_a_run_trust_code(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "trials" / "0007" / "checkpoint" / "other.py").write_text("raise SystemExit")
    bundle = write_bundle(run, tmp_path / "bundle", verify=False, trust_remote_code=True)
    assert "trust_remote_code" not in (bundle / "train.sh").read_text()
    assert not (bundle / "other.py").exists()


def test_reading_a_run_brings_no_trust_along(run_with_code: Path) -> None:
    assert "trust_remote_code" not in best_arguments(run_with_code)
    assert "trust_remote_code" not in load(run_with_code).best_config


def test_a_name_that_is_no_argument_is_never_written_into_a_script(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    _record(run, **{"seed 1; touch PWNED; : ": 1})
    with pytest.raises(RequestError, match=r"every argument .* but its record has 'seed 1; touch"):
        write_bundle(run, tmp_path / "bundle", verify=False)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("workers", ["1; touch PWNED", 0, 1.5])
def test_a_number_of_workers_that_is_none_is_refused(workers: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    _record(run, workers=workers)
    with pytest.raises(RequestError, match="workers must be a number from 1"):
        read_run(run)


@pytest.mark.parametrize("folder", ["../../outside", "/etc", "0007/../../..", "0007-", "", "checkpoint"])
def test_the_winner_lies_inside_of_the_run(folder: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    shutil.copytree(run / "trials" / "0007", tmp_path / "outside")
    result = json.loads((run / "result.json").read_text())
    result["best"]["folder"] = folder
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(RequestError, match=r"best\.folder a trial's, as 0007 or 0007-alpha0\.50"):
        read_run(run)


def test_names_of_files_stay_in_their_cell_of_the_model_card(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    manifest = json.loads((run / "data" / "manifest.json").read_text())
    manifest["sources"][0]["name"] = "a`|<script>alert(1)</script>\n---\n# heading \x1b[2J.jsonl"
    (run / "data" / "manifest.json").write_text(json.dumps(manifest))
    card = (write_bundle(run, tmp_path / "bundle", verify=False) / "README.md").read_text()
    (row,) = (line for line in card.splitlines() if "alert(1)" in line)
    assert row.startswith("| `a'\\|<script>alert(1)</script> --- # heading \\x1b[2J.jsonl` | sha256 `")
    assert row.count("|") - row.count("\\|") == 3
    assert "\n# heading" not in card
