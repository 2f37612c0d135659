"""A local S3 server in a process of its own, so that other processes can be killed beside it."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Yields the address of a moto server with a bucket named ``bucket``, for processes with `ENVIRONMENT`."""
    pytest.importorskip("moto.server", reason="moto stands for S3: pip install 'm3-tuner[test]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(
        command, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _make_bucket(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _make_bucket(endpoint: str) -> None:
    from pyarrow.fs import S3FileSystem

    keys = {"access_key": "testing", "secret_key": "testing", "region": "us-east-1"}
    for _ in range(60):
        with contextlib.suppress(OSError):
            S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True, **keys).create_dir("bucket")
            return
        time.sleep(0.5)
    raise AssertionError("moto's server does not answer")
