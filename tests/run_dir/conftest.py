"""Run directories in storage, S3 and a mounted disk, and machines with empty disks that open them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.s3_fixtures import ENVIRONMENT, s3_server
from tests.support.storage_fixtures import NewMachine
from tuner.run_dir.store import MirroredRunStore, open_run_dir


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Address of a local S3 server with a bucket named ``bucket``; one in this process would lose it to `mock_aws`."""
    with s3_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        for variable, value in ENVIRONMENT.items():
            patch.setenv(variable, value)
        yield endpoint


@pytest.fixture(params=["s3", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/shared/run"
    return f"s3://bucket/{tmp_path.name}?endpoint_override={request.getfixturevalue('s3')}"


@pytest.fixture
def new_machine(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewMachine:
    """Opens the run directory as a machine with an empty disk does; a worker names its driver's lease."""
    numbers = iter(range(100))

    def machine(driver: str | None = None) -> MirroredRunStore:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine{next(numbers)}"))
        store = open_run_dir(url, driver)
        assert isinstance(store, MirroredRunStore)
        return store

    return machine
