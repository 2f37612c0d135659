"""Caches where a home cannot be written."""

import os
from pathlib import Path

import pytest

from tuner.planning.caches import can_be_written, writable_caches


def test_caches_of_a_home_that_cannot_be_written_are_in_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_MODULES_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/nohome")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "mine"))
    with writable_caches(tmp_path / "run") as said:
        assert os.environ["HF_DATASETS_CACHE"] == str(tmp_path / "mine")
        assert Path(os.environ["HF_MODULES_CACHE"]).is_relative_to(tmp_path / "run")
        (line,) = said
        assert "/proc/nohome/.cache/huggingface/modules" in line
        assert "cannot be written" in line
    assert "HF_MODULES_CACHE" not in os.environ


def test_a_home_that_can_be_written_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with writable_caches(tmp_path / "run") as said:
        assert (said, dict(os.environ)) == ([], before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_can_be_written_where_it_would_be_made(tmp_path: Path) -> None:
    assert can_be_written(tmp_path / "a" / "b")
    assert not can_be_written(Path("/proc/a/b"))
    (tmp_path / "file").touch()
    assert not can_be_written(tmp_path / "file" / "b")
