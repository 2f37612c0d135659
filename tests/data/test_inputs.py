"""Data sets and models named by URL, brought to this machine once."""

from pathlib import Path

import pytest

from tuner.data.inputs import local_copy
from tuner.errors import RequestError


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@pytest.mark.parametrize("location", ["./dataset.jsonl", "BAAI/bge-m3", "/data/folder"])
def test_what_is_no_url_stays(location: str) -> None:
    assert local_copy(location) == location


def test_a_file_keeps_its_name(shared: Path) -> None:
    (shared / "dataset.jsonl").write_text("{}\n")
    copy = Path(local_copy(f"file://{shared}/dataset.jsonl"))
    assert copy.name == "dataset.jsonl"
    assert copy.read_text() == "{}\n"
    assert shared not in copy.parents


def test_a_folder_keeps_its_name_and_layout(shared: Path) -> None:
    (shared / "model/1_Pooling").mkdir(parents=True)
    (shared / "model/config.json").write_text("{}")
    (shared / "model/1_Pooling/config.json").write_text("cls")
    copy = Path(local_copy(f"file://{shared}/model/"))
    assert copy.name == "model"
    assert (copy / "1_Pooling/config.json").read_text() == "cls"
    assert len(list(copy.rglob("*.json"))) == 2


def test_it_is_downloaded_once_and_again_when_it_changed(shared: Path) -> None:
    source = shared / "dataset.jsonl"
    source.write_text("1\n")
    url = f"file://{source}"
    first = Path(local_copy(url))
    inode = first.stat().st_ino
    assert Path(local_copy(url)).stat().st_ino == inode
    source.write_text("1\n2\n")
    assert Path(local_copy(url)).read_text() == "1\n2\n"
    assert first.read_text() == "1\n"  # a search that reads it now is not disturbed


def test_nothing_there_is_said(shared: Path) -> None:
    with pytest.raises(RequestError, match="nothing is there"):
        local_copy(f"file://{shared}/missing.jsonl")
