"""``python -m tuner.cluster.spot --address HEAD:6379``: tells Ray when AWS is about to take this machine away.

Runs beside Ray on each spot machine (cluster.yaml starts it). AWS announces an interruption two minutes ahead at the
instance's own metadata service; Ray, told of it, lets running trials save their state and starts nothing more here.
"""

import argparse
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""Environment variable of AWS's own tools for another address of the metadata service."""

_DEFAULT = "http://169.254.169.254"
_NOTICE_SECONDS = 120
_POLL_SECONDS = 5.0
_TOKEN_SECONDS = "60"


def is_announced(endpoint: str) -> bool:
    """Whether AWS has announced that it takes this machine away; False where no metadata service answers."""
    try:
        token = _asked(endpoint, "/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": _TOKEN_SECONDS})
        _asked(endpoint, "/latest/meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token})
    except (urllib.error.URLError, TimeoutError):  # 404: nothing is announced
        return False
    return True


def watch(endpoint: str, drain: Callable[[], None], *, poll_seconds: float = _POLL_SECONDS) -> None:
    """Calls `drain` once, when the machine's end is announced."""
    while not is_announced(endpoint):
        time.sleep(poll_seconds)
    drain()


def main(argv: Sequence[str] | None = None) -> int:
    """Watches until the machine's end is announced; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m tuner.cluster.spot", description=__doc__)
    parser.add_argument("--address", required=True, metavar="HOST:PORT", help="of the cluster's head")
    address = parser.parse_args(argv).address
    watch(os.environ.get(ENDPOINT, _DEFAULT), lambda: _drain_this_node(address))
    return 0


def _asked(endpoint: str, path: str, method: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(f"{endpoint}{path}", method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=2) as answer:
        return str(answer.read().decode())


def _drain_this_node(address: str) -> None:
    ray = str(Path(sys.executable).with_name("ray"))
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "AWS takes the spot machine away"]
    deadline = ["--deadline-remaining-seconds", str(_NOTICE_SECONDS)]
    subprocess.run([ray, "drain-node", "--address", address, *reason, *deadline], check=True)


if __name__ == "__main__":
    sys.exit(main())
