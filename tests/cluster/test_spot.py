"""AWS's notice that a spot machine is taken away, from a metadata service as AWS describes it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tuner.cluster.spot import is_announced, watch


class Metadata(BaseHTTPRequestHandler):
    """IMDSv2: nothing without a token; 404 until an interruption is announced."""

    announced = threading.Event()

    def do_PUT(self) -> None:
        self._answer(200 if self.path == "/latest/api/token" else 404, "the token")

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != "the token":
            self._answer(401, "")
        elif self.path == "/latest/meta-data/spot/instance-action" and self.announced.is_set():
            self._answer(200, '{"action": "terminate", "time": "2026-06-01T12:00:00Z"}')
        else:
            self._answer(404, "")

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Metadata.announced.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_machine_is_drained_once_it_is_announced(endpoint: str) -> None:
    drained: list[bool] = []
    watching = threading.Thread(
        target=watch, args=(endpoint, lambda: drained.append(True)), kwargs={"poll_seconds": 0.05}
    )
    assert not is_announced(endpoint)
    watching.start()
    watching.join(0.3)
    assert drained == []
    Metadata.announced.set()
    watching.join(5)
    assert drained == [True]


def test_a_machine_that_is_not_awss_is_never_drained() -> None:
    assert not is_announced("http://127.0.0.1:1")
