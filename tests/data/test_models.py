"""The base model's folder, found before anything expensive starts."""

from pathlib import Path

import pytest

from tuner.data.models import find_model
from tuner.errors import RequestError


def _cache(folder: Path, *snapshots: str, ref: str | None = None) -> Path:
    for name in snapshots:
        (folder / "snapshots" / name).mkdir(parents=True)
        (folder / "snapshots" / name / "config.json").write_text("{}")
    if ref:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(ref)
    return folder


def test_a_folder_of_the_hubs_cache_stands_for_its_snapshot(tmp_path: Path) -> None:
    one = _cache(tmp_path / "models--BAAI--bge-m3", "5617a9f")
    assert find_model(str(one)) == str(one / "snapshots" / "5617a9f")
    two = _cache(tmp_path / "two", "aaa", "bbb", ref="bbb")
    assert find_model(str(two)) == str(two / "snapshots" / "bbb")


def test_of_several_snapshots_one_has_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"name one of its snapshots .*aaa, .*bbb"):
        find_model(str(_cache(tmp_path / "two", "aaa", "bbb")))
