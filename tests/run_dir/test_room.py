"""A search that is to make room stays until the new one's request is found good, and after it under a dated name."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import yaml

from tests.support.m3_fixtures import make_model, make_rows
from trainables.files import files_in, write_text
from tuner.errors import RequestError
from tuner.request.asked import changes
from tuner.request.command_line import parse
from tuner.run_dir.ownership import held, mark
from tuner.run_dir.replaced import ASIDE, BEGUN, FORGOTTEN, forget_replaced, holds_search, keep_replaced, set_aside
from tuner.run_dir.written import written
from tuner.search.run import main
from tuner.study.storage import require_study

REQUEST = ["--train_data", "rows.jsonl", "--learning_rate", "1e-5"]


def study_in(folder: Path) -> bytes:
    """Makes a study as a search does; returns the file's content."""
    optuna.create_study(storage=f"sqlite:///{folder / 'study.db'}", study_name="search")
    return (folder / "study.db").read_bytes()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """What a search has left: a study, a trial of which no file is there yet, and a note of the user's own."""
    folder = tmp_path / "run"
    (folder / "trials" / "0000").mkdir(parents=True)
    mark(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump({**parse(REQUEST).to_dict(), "command": "the old one"}))
    study_in(folder)
    (folder / "notes.txt").write_text("the user's own")
    return folder


def _visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")


def test_what_was_set_aside_comes_back(run_dir: Path) -> None:
    old = (run_dir / "study.db").read_bytes()
    with set_aside(run_dir):
        assert _visible(run_dir) == ["notes.txt"]
        (run_dir / "study.db").write_bytes(b"")
        (run_dir / "config.yaml").write_text("arguments: {}\nnum_trials: 3")
    assert _visible(run_dir) == ["config.yaml", "notes.txt", "study.db", "trials"]
    assert (run_dir / "study.db").read_bytes() == old
    assert (run_dir / "trials" / "0000").is_dir()


def test_what_was_forgotten_is_gone(run_dir: Path) -> None:
    with set_aside(run_dir):
        (run_dir / "study.db").write_bytes(b"")
        forget_replaced(run_dir)
    assert (run_dir / "study.db").read_bytes() == b""
    assert _visible(run_dir) == ["notes.txt", "study.db"]


def test_what_was_kept_is_a_run_directory_of_its_own(run_dir: Path) -> None:
    before = files_in(run_dir)
    for _ in range(2):
        with set_aside(run_dir):
            kept = keep_replaced(run_dir, "20261126-101500")
        assert kept is not None
        shutil.copytree(kept, run_dir, dirs_exist_ok=True)
    assert _visible(run_dir)[2:4] == ["replaced-20261126-101500", "replaced-20261126-101500-2"]
    assert kept is not None
    with held(kept, "--resume"):
        assert holds_search(kept)
    assert before - {"notes.txt", ".m3-tuner"} <= files_in(kept)


def test_what_a_killed_process_had_set_aside_is_found(run_dir: Path) -> None:
    old = (run_dir / "study.db").read_bytes()
    killed = run_dir.with_name("killed")
    with set_aside(run_dir):
        shutil.copytree(run_dir, killed)
    assert not holds_search(killed)
    (killed / "study.db").write_bytes(b"")
    with held(killed, "--run_dir"):
        assert holds_search(killed)
    assert (killed / "study.db").read_bytes() == old
    assert files_in(killed) - {".lock"} == files_in(run_dir)


@pytest.mark.parametrize("place", [BEGUN, ASIDE])
def test_a_search_without_a_mark_is_known_where_a_killed_process_had_moved_it(place: str, run_dir: Path) -> None:
    (run_dir / ".m3-tuner").unlink()
    entries = [entry for entry in run_dir.iterdir() if entry.name != "notes.txt"]
    (run_dir / place).mkdir()
    for entry in entries:
        entry.rename(run_dir / place / entry.name)
    with held(run_dir, "--resume"):
        assert holds_search(run_dir)


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from tuner.run_dir.replaced import forget_replaced, set_aside
run_dir = Path(sys.argv[1])
with set_aside(run_dir):
    remove, left = os.rmdir, []
    def killed(*arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)
    os.rmdir = killed
    forget_replaced(run_dir)
"""


def test_a_removal_that_was_killed_half_way_is_taken_up(run_dir: Path) -> None:
    """Each later one ended in `OSError: Directory not empty`."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(run_dir)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert any((run_dir / FORGOTTEN).iterdir())
    study_in(run_dir)
    with set_aside(run_dir):
        forget_replaced(run_dir)
    (run_dir / FORGOTTEN / "trials").mkdir(parents=True)
    with held(run_dir, "--run_dir"):
        assert not (run_dir / FORGOTTEN).exists()
    assert _visible(run_dir) == ["notes.txt"]


def test_only_what_a_search_wrote_is_moved_and_deleted(run_dir: Path) -> None:
    own = {
        "data/raw/precious.parquet", "data/train/mine.jsonl", "settings/prod.toml", "best/model.safetensors",
        "trials/2023-A/patients.csv", "trials/0000/notes.txt", "tensorboard/events", "src/a.py",
    }  # fmt: skip
    for name in own:
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text("the user's own")
    (run_dir / "trials" / "0000" / "metrics.jsonl").write_text("{}")
    with set_aside(run_dir):
        assert (run_dir / ASIDE / "trials" / "0000" / "metrics.jsonl").is_file()
        assert own | {"notes.txt", ".m3-tuner"} == {n for n in files_in(run_dir) if not n.startswith(".replaced")}
        forget_replaced(run_dir)
    assert files_in(run_dir) == own | {"notes.txt", ".m3-tuner"}


def test_curves_go_with_their_search(run_dir: Path) -> None:
    """A new trial of the same name would be drawn with the old one's."""
    events, experiment = "tensorboard/0007/events.out.tfevents.1700000000.head.1.0", run_dir.name
    for file in (run_dir / events, run_dir / "tensorboard/by-hand/events.out.tfevents.1700000000.head.1.0"):
        file.parent.mkdir(parents=True)
        file.write_text("curves")
    with closing(sqlite3.connect(run_dir / "mlflow.db")) as database, database:
        database.execute("create table experiments (name text)")
        database.executemany("insert into experiments values (?)", [("Default",), (experiment,)])
    assert {events, "mlflow.db"} <= set(written(run_dir))
    with closing(sqlite3.connect(run_dir / "mlflow.db")) as database, database:
        database.execute("insert into experiments values ('of somebody else')")
    with set_aside(run_dir):
        kept = keep_replaced(run_dir, "20260101-000000")
    assert kept is not None
    assert (kept / events).is_file()
    assert not (run_dir / "tensorboard/0007").exists()
    assert (run_dir / "tensorboard/by-hand").is_dir()
    assert (run_dir / "mlflow.db").is_file()


@pytest.fixture
def request_flags(tmp_path: Path) -> list[str]:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    return ["--model_name_or_path", str(model), "--train_data", str(rows)]


@pytest.mark.parametrize(
    ("flags", "code"), [(["--dry_run"], 0), (["--temperature", "-1"], 2), (["--gpus_per_trial", "9"], 2)]
)
@pytest.mark.parametrize("replacing", ["--overwrite_output_dir", "--replace"])
def test_neither_a_plan_nor_a_bad_request_costs_the_old_search(
    flags: list[str],
    code: int,
    replacing: str,
    run_dir: Path,
    request_flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan without its estimate, whose first steps are trained in a process and a folder of their own."""
    monkeypatch.setattr("tuner.planning.estimate.describe", lambda _: [])
    before = {name: (run_dir / name).read_bytes() for name in files_in(run_dir)}
    assert main([*request_flags, "--run_dir", str(run_dir), replacing, *flags]) == code
    assert {name: (run_dir / name).read_bytes() for name in files_in(run_dir) - {".lock"}} == before


def test_a_search_whose_study_lies_elsewhere_is_not_searched_over(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config.yaml alone knows the study's name."""
    (run_dir / "study.db").unlink()
    config = (run_dir / "config.yaml").read_bytes()
    flags = ["--train_data", "rows.jsonl", "--run_dir", str(run_dir), "--storage", str(tmp_path / "study.journal")]
    assert main(flags) == 2
    assert f"{run_dir} holds a search already" in capsys.readouterr().err
    assert (run_dir / "config.yaml").read_bytes() == config


@pytest.mark.parametrize(
    ("flags", "differing"),
    [
        ([], []),
        (["--overwrite_output_dir", "--disk_budget", "90GB", "--run_dir", "elsewhere", "--token", "hf_secret"], []),
        (["--learning_rate", "2e-5"], ["--learning_rate was 1e-05 and is 2e-05"]),
        (["--num_trials", "9", "--fp16"], ["--fp16 was None and is True", "num_trials was 16 and is 9"]),
    ],
    ids=["the same line", "where and with what", "another", "two others"],
)
def test_the_same_request_is_known(flags: list[str], differing: list[str], run_dir: Path) -> None:
    assert changes(parse([*REQUEST, *flags]), run_dir) == differing


def test_the_same_settings_file_is_no_other_request(run_dir: Path, tmp_path: Path) -> None:
    """config.yaml names the copy that the run directory has."""
    (tmp_path / "space.yaml").write_text("learning_rate: {low: 1e-6, high: 3e-5}")
    config = parse([*REQUEST, "--search_space", str(tmp_path / "space.yaml")])
    recorded = {**config.to_dict(), "search_space": "settings/9c6a2c2ddfb1.yaml"}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(recorded))
    (line,) = changes(config, run_dir) or []
    name = line.rpartition(" ")[2]
    assert name.startswith("settings/")
    (run_dir / "config.yaml").write_text(yaml.safe_dump({**recorded, "search_space": name}))
    assert changes(config, run_dir) == []


def test_a_manifest_of_somebody_elses_is_not_ours(run_dir: Path) -> None:
    (run_dir / "data" / "train").mkdir(parents=True)
    write_text(run_dir / "data" / "manifest.json", json.dumps({"train": [{"path": "../.."}]}))
    assert not [name for name in written(run_dir) if name.startswith("data")]


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
