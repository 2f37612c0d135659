"""A MariaDB server of a test's own, from the system's binaries: it speaks MySQL's protocol."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.postgres import DATABASE, PASSWORD, USER


@contextmanager
def running_server() -> Iterator[str]:
    """Yields the URL of a new server's empty database; skips the test where MariaDB is not installed."""
    pytest.importorskip("pymysql", reason="PyMySQL is not installed")
    if not all(shutil.which(name) for name in ("mariadb-install-db", "mariadbd", "mariadb")):
        pytest.skip("MariaDB is not installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        _install(place)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        server = subprocess.Popen(
            ["mariadbd", *_options(place), f"--port={port}", "--bind-address=127.0.0.1"],
            stderr=(place / "log").open("w"),
        )
        try:
            _create_database(place)
            yield f"mysql://{USER}:{PASSWORD}@127.0.0.1:{port}/{DATABASE}"
        finally:
            server.terminate()
            server.wait(60)


def _options(place: Path) -> list[str]:
    user = ["--user=root"] if os.geteuid() == 0 else []
    return ["--no-defaults", f"--datadir={place / 'data'}", f"--socket={place / 'socket'}", *user]


def _install(place: Path) -> None:
    command = ["mariadb-install-db", *_options(place), "--auth-root-authentication-method=normal", "--skip-test-db"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _create_database(place: Path) -> None:
    statements = (
        f"CREATE DATABASE {DATABASE}; CREATE USER {USER}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'; "
        f"GRANT ALL ON {DATABASE}.* TO {USER}@'127.0.0.1'"
    )
    command = ["mariadb", "--no-defaults", f"--socket={place / 'socket'}", "-u", "root", "-e", statements]
    for _ in range(60):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.5)
    raise AssertionError(done.stderr + (place / "log").read_text())
