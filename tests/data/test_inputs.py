"""Data sets and models named by URL, brought to this machine once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tuner.data.inputs
from tests.support.s3_fixtures import ENVIRONMENT, s3_server
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


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a local S3 server with the buckets ``public`` and ``victim``, and the query that names the server."""
    boto3 = pytest.importorskip("boto3")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with s3_server() as endpoint:
        client = boto3.client("s3", endpoint_url=endpoint)
        for name in ("public", "victim"):
            client.create_bucket(Bucket=name)
        yield client, f"?endpoint_override={endpoint}&region=us-east-1"


@pytest.mark.parametrize("key", ["dataset/../../../../../../victim/.bashrc", "dataset/../evil.jsonl"])
def test_objects_whose_names_lead_elsewhere_are_refused(
    key: str, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket of data that someone else can write to, and a server that takes keys for paths."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/.bashrc").write_text("# mine")
    client, query = bucket
    client.put_object(Bucket="public", Key="dataset/a.jsonl", Body=b"{}")
    client.put_object(Bucket="public", Key=key, Body=b"listed")
    client.put_object(Bucket="victim", Key=".bashrc", Body=b"echo pwned by a data set")
    with pytest.raises(RequestError, match=r"public/dataset"):
        local_copy(f"s3://public/dataset{query}")
    assert (tmp_path / "victim/.bashrc").read_text() == "# mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == [
        tmp_path / "victim/.bashrc"
    ]


def test_a_download_that_fails_is_the_request_s_error(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shared / "dataset.jsonl").write_text("{}\n")

    def away(*_: object) -> None:
        raise FileNotFoundError("it was removed just now")

    monkeypatch.setattr(tuner.data.inputs, "receive", away)
    with pytest.raises(RequestError, match="could not be brought here: it was removed just now"):
        local_copy(f"file://{shared}/dataset.jsonl")
