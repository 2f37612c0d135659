"""A search that is to be replaced stays until the new one's request is found good."""

from pathlib import Path

import optuna
import pytest
import yaml

from tests.support.m3_fixtures import make_model, make_rows
from tuner.errors import RequestError
from tuner.request.command_line import parse
from tuner.run_dir.replaced import forget_replaced, holds_search, set_aside
from tuner.search.run import main
from tuner.study.storage import require_study


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


@pytest.fixture
def request_flags(tmp_path: Path) -> list[str]:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    return ["--model_name_or_path", str(model), "--train_data", str(rows)]


@pytest.mark.parametrize(
    ("flags", "code"), [(["--dry_run"], 0), (["--temperature", "-1"], 2), (["--gpus_per_trial", "9"], 2)]
)
def test_neither_a_plan_nor_a_bad_request_costs_the_old_search(
    flags: list[str], code: int, run_dir: Path, request_flags: list[str]
) -> None:
    assert main([*request_flags, "--run_dir", str(run_dir), "--overwrite_output_dir", *flags]) == code
    assert (run_dir / "study.db").read_text() == "old"
    assert not (run_dir / "config.yaml").exists()


def test_a_search_whose_study_lies_elsewhere_is_not_searched_over(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config.yaml alone knows the study's name."""
    (run_dir / "study.db").unlink()
    (run_dir / "config.yaml").write_text("study_name: run-1a2b3c4d\n")
    flags = ["--train_data", "rows.jsonl", "--run_dir", str(run_dir), "--storage", str(tmp_path / "study.journal")]
    assert main(flags) == 2
    assert f"{run_dir} holds a search already" in capsys.readouterr().err
    assert (run_dir / "config.yaml").read_text() == "study_name: run-1a2b3c4d\n"


@pytest.mark.parametrize(
    ("storage", "shown"),
    [
        (None, "sqlite:///{run_dir}/study.db"),
        ("study.journal", "study.journal"),
        ("sqlite:///studies.db?timeout=9", "sqlite:///studies.db?timeout=9"),
        ("sqlite:///{other}", "sqlite:///{other}"),
    ],
    ids=["deleted", "journal", "file", "another study"],
)
def test_a_search_does_not_begin_anew_over_its_trials_where_its_study_is_not(
    storage: str | None,
    shown: str,
    run_dir: Path,
    request_flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As from another directory than the one that the storage's path was meant from."""
    monkeypatch.chdir(tmp_path)
    optuna.create_study(storage=f"sqlite:///{tmp_path}/other.db", study_name="of somebody else")
    (run_dir / "study.db").unlink()
    asked = parse(request_flags).to_dict()
    (run_dir / "config.yaml").write_text(yaml.safe_dump({**asked, "study_name": "run-1a2b3c4d" if storage else None}))
    names = {"run_dir": run_dir, "other": tmp_path / "other.db"}
    flags = ["--storage", storage.format(**names)] if storage else []
    assert main(["--resume", str(run_dir), "--dry_run", *flags]) == 2
    name = "run-1a2b3c4d" if storage else "search"
    assert f"the storage {shown.format(**names)} holds no study '{name}'" in capsys.readouterr().err
    assert not [*tmp_path.glob("stud*"), *run_dir.glob("study.db")]


def test_a_missing_study_is_told_without_the_password(run_dir: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/other.db?password=secret"
    with pytest.raises(RequestError, match=r"other.db\?password=\*\*\* holds no study 'mine'"):
        require_study(url, run_dir, "mine")
