"""A PostgreSQL server of a test's own, from the system's binaries."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PLACES = ("/usr/local/bin", "/usr/lib/postgresql/*/bin", "/opt/homebrew/bin", "/usr/pgsql-*/bin")
USER, PASSWORD, DATABASE = "tuner", "geheim-42", "studies"


class Server:
    """A server that can be taken away and brought back.

    Args:
        binaries: Where initdb and pg_ctl are.
        folder: Of the data, owned by `user`.
        user: Who runs it, as PostgreSQL refuses root; None: this process's own.
    """

    def __init__(self, binaries: Path, folder: Path, user: str | None) -> None:
        self._binaries, self._folder, self._user = binaries, folder, user
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        (folder / "password").write_text(PASSWORD)
        self._run("initdb", "-U", USER, "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "-E", "UTF8")
        self.start()
        self._database()

    @property
    def url(self) -> str:
        """As a user writes it."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{DATABASE}"

    def start(self) -> None:
        """Returns when it takes connections."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        self._run("pg_ctl", "-w", "-t", "60", "-o", options, "-l", str(self._folder / "log"), "start")

    def stop(self) -> None:
        """As a server that dies: connections are cut."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def _database(self) -> None:
        import psycopg

        where = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), "-D", str(self._folder / "data"), *arguments]
        if self._user is not None:
            group = pwd.getpwnam(self._user).pw_gid
            command = ["setpriv", f"--reuid={self._user}", f"--regid={group}", "--clear-groups", *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self._folder)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def running_server() -> Iterator[Server]:
    """Yields a new server; skips the test where PostgreSQL is not installed."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    binaries = next((p.parent for place in _PLACES for p in sorted(Path("/").glob(f"{place[1:]}/initdb"))), None)
    if binaries is None:
        pytest.skip("PostgreSQL's initdb is not installed")
    user = None
    if os.geteuid() == 0:
        user = next((name for name in ("postgres", "nobody") if _is_user(name)), None)
        if user is None or shutil.which("setpriv") is None:
            pytest.skip("PostgreSQL refuses root, and there is no other user to run it as")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if user is not None:
            shutil.chown(folder, user)
        server = Server(binaries, Path(folder), user)
        try:
            yield server
        finally:
            server.stop()


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
