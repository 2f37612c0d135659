"""A Ray cluster on this machine as `cluster.yaml` starts one: token authentication, dashboard on loopback."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Head:
    """A running head."""

    dashboard: str
    environment: dict[str, str]
    """For processes that have the token."""

    def run(self, *command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Runs a command that has the token; stdout and stderr are one text."""
        return subprocess.run(
            command,
            env=self.environment,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )

    def job(self, verb: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Runs ``ray job VERB ...``."""
        return self.run(RAY, "job", verb, "--address", self.dashboard, *arguments, timeout=timeout)

    def status(self, submission_id: str) -> str:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
        said = self.job("status", submission_id).stdout
        return next(
            state for state in ("PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED") if state in said.upper()
        )


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@contextlib.contextmanager
def running_head(folder: Path, cpus: int = 2) -> Iterator[Head]:
    """Starts ``ray start --head`` in `folder` with a token of its own, and ends its processes afterwards."""
    port, dashboard, agent, client = _free_ports(4)
    place = tempfile.mkdtemp(prefix="head-", dir="/tmp")  # a socket's path may have 107 characters
    token = folder / "auth_token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    environment.pop("RAY_ADDRESS", None)
    command = (
        f"{RAY} start --head --block --num-cpus {cpus} --port {port} --ray-client-server-port {client} "
        f"--dashboard-host 127.0.0.1 --dashboard-port {dashboard} --dashboard-agent-listen-port {agent} "
        f"--object-store-memory 200000000 --temp-dir {place}"
    )
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(
        command.split(), env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    head = Head(f"http://127.0.0.1:{dashboard}", environment)
    try:
        _wait_for_dashboard(head, process, folder / "head.log")
        yield head
    finally:
        process.send_signal(signal.SIGTERM)  # --block: Ray ends what it started
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        log.close()
        shutil.rmtree(place, ignore_errors=True)


def _wait_for_dashboard(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(60):
        assert process.poll() is None, log.read_text()
        if head.job("list", timeout=60).returncode == 0:
            return
        time.sleep(1)
    raise AssertionError(f"no dashboard: {log.read_text()}")
