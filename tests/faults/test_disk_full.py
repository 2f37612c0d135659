"""A disk that is full: the search pauses, says why, loses nothing, and goes on when there is room."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake import fake_rungs, new_agenda, new_study
from tests.support.m3_fixtures import make_model, make_rows
from trainables.config import Progress, Report, TrialConfig
from trainables.files import new_folder, write_text
from tuner.cluster.executor import run_in_process
from tuner.request.config import SearchConfig
from tuner.schedule.agenda import Agenda
from tuner.search.run import main
from tuner.study.storage import PatientStorage, open_storage
from tuner.study.study import read_studies

CONFIG = SearchConfig(num_trials=5, finalists=0, keep_checkpoints=1, pruner="none")
MIB = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """8 MiB of memory as a file system."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=False)
    if mounted.returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _writes(config: TrialConfig, report: Report, progress: Progress) -> None:
    """Each rung leaves a checkpoint of 1 MiB."""
    for rung in fake_rungs(config):
        progress(rung.step, 100)
        if config.rungs:
            with new_folder(Path(config.directory) / "checkpoint") as folder:
                (folder / "weights").write_bytes(os.urandom(MIB))
                write_text(folder / "config.json", "{}")
        if not report(rung):
            return


def _agenda(run_dir: Path, said: list[str]) -> Agenda:
    storage = PatientStorage(open_storage(None, run_dir), say=said.append, seconds=60)
    return new_agenda(CONFIG, new_study(CONFIG, storage), run_dir)


def _trials(run_dir: Path) -> list[tuple[object, ...]]:
    return [(t.number, t.state.name, t.value, t.params) for t in read_studies(run_dir)[0].trials]


@pytest.mark.integration
def test_a_search_goes_on_when_there_is_room_again(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "straight").mkdir()
    run_in_process(_agenda(tmp_path / "straight", []), _writes)

    run_dir, ballast, notes = small_disk / "run", small_disk / "ballast", set[str]()
    run_dir.mkdir()
    agenda = _agenda(run_dir, [])

    def fills_up(config: TrialConfig, report: Report, progress: Progress) -> None:
        if config.name == "0002" and not ballast.exists():
            room = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
            ballast.write_bytes(b"0" * (room - MIB // 2))
            threading.Timer(4, ballast.write_bytes, [b""]).start()
        _writes(config, report, progress)

    while not agenda.finished:  # as Tune asks again and again
        run_in_process(agenda, fills_up)
        notes.add(agenda.note)
        time.sleep(0.1)
    assert _trials(run_dir) == _trials(tmp_path / "straight")
    assert next(row.state for row in agenda.rows if row.name == "0002") == "retried"
    assert any("paused, no room on the disk: a trial could not write its files" in note for note in notes)
    assert read_studies(run_dir)[0].trials[2].user_attrs["retries"][0].startswith("disk_full: OSError: [Errno 28]")


def test_a_study_that_cannot_be_written_is_waited_for(small_disk: Path) -> None:
    """SQLite's own file is on the full disk."""
    run_dir, ballast, said = small_disk / "run", small_disk / "ballast", list[str]()
    run_dir.mkdir()
    agenda = _agenda(run_dir, said)

    def fills_up(config: TrialConfig, report: Report, progress: Progress) -> None:
        for rung in fake_rungs(config):
            progress(rung.step, 100)
            if config.name == "0002" and not ballast.exists():
                with ballast.open("wb", buffering=0) as file:
                    _write_until_full(file.fileno())
                threading.Timer(2, ballast.write_bytes, [b""]).start()
            report(rung)

    run_in_process(agenda, fills_up)
    assert "does not answer (database or disk is full)" in said[0]
    assert "is back after" in said[1]
    assert [state for _, state, *_ in _trials(run_dir)] == ["COMPLETE"] * 5


def _write_until_full(descriptor: int) -> None:
    try:
        while True:
            os.write(descriptor, b"0" * 4096)
    except OSError:
        return


def test_a_disk_that_cannot_hold_the_search_is_refused_before_it_starts(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0" * MIB)  # its size is what counts
    flags = ["--model_name_or_path", str(model), "--train_data", str(rows), "--run_dir", str(small_disk / "run")]
    assert main(flags) == 2
    assert f"the free space of {small_disk / 'run'} must hold" in capsys.readouterr().err
    assert not (small_disk / "run" / "study.db").exists()


@pytest.mark.parametrize("way", ["a file stands there", "it is mounted read-only"])
def test_a_run_directory_that_cannot_be_written_is_refused(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    if way == "a file stands there":
        run_dir.write_text("")
    else:
        run_dir.mkdir()
        bound = subprocess.run(["mount", "--bind", "-o", "ro", str(run_dir), str(run_dir)], check=False)
        if bound.returncode != 0:
            pytest.skip("a folder cannot be mounted read-only here")
    try:
        assert main(["--run_dir", str(run_dir)]) == 2
    finally:
        if run_dir.is_dir():
            subprocess.run(["umount", "-l", str(run_dir)], check=True)
    why = "must be a directory, but is a file" if way == "a file stands there" else "cannot be written: "
    assert f"error: --run_dir {run_dir}: {why}" in capsys.readouterr().err
