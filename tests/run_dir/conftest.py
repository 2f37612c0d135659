"""Run directories in storage, S3 and a mounted disk, and machines with empty disks that open them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.storage_fixtures import NewMachine
from tuner.run_dir.store import MirroredRunStore, open_run_dir


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Address of a local S3 server with a bucket named ``bucket``."""
    server_module = pytest.importorskip("moto.server", reason="moto stands for S3: pip install 'm3-tuner[test]'")
    from pyarrow.fs import S3FileSystem

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(variable, "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True).create_dir("bucket")
        yield endpoint
    server.stop()


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
