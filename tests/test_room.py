"""A search that is to be replaced stays until the new one's request is found good."""

from pathlib import Path

import pytest

from tests.m3_fixtures import make_model, make_rows
from tuner.room import forget_replaced, holds_search, set_aside
from tuner.search import main


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "trials" / "0000").mkdir(parents=True)
    (folder / "study.db").write_text("old")
    (folder / "notes.txt").write_text("the user's own")
    return folder


def test_what_was_set_aside_comes_back(run_dir: Path) -> None:
    with set_aside(run_dir):
        assert [path.name for path in run_dir.iterdir() if path.name[0] != "."] == ["notes.txt"]
        (run_dir / "study.db").write_text("new")
        (run_dir / "config.yaml").write_text("new")
    assert sorted(path.name for path in run_dir.iterdir()) == ["notes.txt", "study.db", "trials"]
    assert (run_dir / "study.db").read_text() == "old"
    assert (run_dir / "trials" / "0000").is_dir()


def test_what_was_forgotten_is_gone(run_dir: Path) -> None:
    with set_aside(run_dir):
        (run_dir / "study.db").write_text("new")
        forget_replaced(run_dir)
    assert (run_dir / "study.db").read_text() == "new"
    assert sorted(path.name for path in run_dir.iterdir()) == ["notes.txt", "study.db"]


def test_what_a_killed_process_had_set_aside_is_found(run_dir: Path) -> None:
    with set_aside(run_dir):
        (run_dir / "study.db").write_text("new")
        assert holds_search(run_dir)
        assert (run_dir / "study.db").read_text() == "old"
    assert (run_dir / "study.db").read_text() == "old"


@pytest.mark.parametrize(
    ("flags", "code"), [(["--dry_run"], 0), (["--temperature", "-1"], 2), (["--gpus_per_trial", "9"], 2)]
)
def test_neither_a_plan_nor_a_bad_request_costs_the_old_search(
    flags: list[str], code: int, run_dir: Path, tmp_path: Path
) -> None:
    make_model(tmp_path / "model")
    make_rows(tmp_path / "rows.jsonl", rows=120)
    request = ["--model_name_or_path", str(tmp_path / "model"), "--train_data", str(tmp_path / "rows.jsonl")]
    assert main([*request, "--run_dir", str(run_dir), "--overwrite_output_dir", *flags]) == code
    assert (run_dir / "study.db").read_text() == "old"
    assert not (run_dir / "config.yaml").exists()
