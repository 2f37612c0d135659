"""Machines of a Ray cluster as network namespaces of this one: each has an address, a link and processes of its own."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
HEAD = "10.231.7.1"


def can_make_namespaces() -> bool:
    """Whether this process may make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"m3try{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", name], check=True)
    return made


class Namespaces:
    """A head and machines around it; the head's namespace holds the bridge that joins them.

    Args:
        folder: Where Ray's sockets and logs go; its path must be short.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._prefix = folder, f"m3-{os.getpid()}"
        self._machines: dict[int, subprocess.Popen[bytes]] = {}
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
        }
        self.environment.pop("RAY_ADDRESS", None)

    def start_head(self) -> None:
        """Machine 1, with one CPU."""
        self._add(1)
        self._ip("-n", self._name(1), "link", "add", "eth0", "type", "bridge")
        self._ip("-n", self._name(1), "addr", "add", f"{HEAD}/24", "dev", "eth0")
        self._ip("-n", self._name(1), "link", "set", "eth0", "up")
        self._start(1, "--head", "--port=6379", f"--temp-dir={self._folder / 'r'}", "--include-dashboard=false")

    def start_machine(self, number: int) -> None:
        """Another machine, with one CPU."""
        self._add(number)
        name, link = self._name(number), f"m3v{number}"
        peer = ["type", "veth", "peer", "name", "eth0", "netns", name]
        self._ip("-n", self._name(1), "link", "add", link, *peer)
        self._ip("-n", self._name(1), "link", "set", link, "master", "eth0", "up")
        self._ip("-n", name, "addr", "add", f"10.231.7.{number}/24", "dev", "eth0")
        self._ip("-n", name, "link", "set", "eth0", "up")
        self._start(number, f"--address={HEAD}:6379")

    def lose(self, number: int) -> None:
        """Cuts a machine's link and ends its processes: nothing of it says goodbye."""
        self._ip("-n", self._name(number), "link", "set", "eth0", "down")
        self._end(number)

    def run(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Starts a command on the head."""
        with log.open("w") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self._name(1), *command],
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def close(self) -> None:
        """Ends every machine."""
        for number in list(self._machines):
            self._end(number)
            subprocess.run(["ip", "netns", "del", self._name(number)], check=False)

    def _name(self, number: int) -> str:
        return f"{self._prefix}-{number}"

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def _add(self, number: int) -> None:
        self._ip("netns", "add", self._name(number))
        self._ip("-n", self._name(number), "link", "set", "lo", "up")

    def _start(self, number: int, *flags: str) -> None:
        command = [
            *("ip", "netns", "exec", self._name(number), RAY, "start", "--block", "--num-cpus=1"),
            *(f"--node-ip-address=10.231.7.{number}", "--object-store-memory=100000000", *flags),
        ]
        with (self._folder / f"machine{number}.log").open("w") as log:
            self._machines[number] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._wait_until_up(number)

    def _wait_until_up(self, number: int) -> None:
        log = self._folder / f"machine{number}.log"
        for _ in range(120):
            assert self._machines[number].poll() is None, log.read_text()
            if "Ray runtime started" in log.read_text():
                return
            time.sleep(0.5)
        raise AssertionError(log.read_text())

    def _end(self, number: int) -> None:
        for process in _processes_in(self._name(number)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._machines[number].wait(30)


def _processes_in(namespace: str) -> list[int]:
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(process) for process in listed.stdout.split()]


@contextlib.contextmanager
def namespaces(folder: Path) -> Iterator[Namespaces]:
    """Yields machines, of which none is left afterwards."""
    machines = Namespaces(folder)
    try:
        yield machines
    finally:
        machines.close()
