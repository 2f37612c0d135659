"""optuna-dashboard on the study of a search: names and attributes as a person reads them."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna_dashboard
import pytest

from tests.support.fake import METRIC, fake_train, open_agenda
from tuner.cluster.executor import run_in_process
from tuner.request.config import SearchConfig
from tuner.study.storage import open_storage


class _Silent(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    run_in_process(open_agenda(SearchConfig(num_trials=4, finalists=1, finalist_seeds=1), tmp_path), fake_train)
    app = optuna_dashboard.wsgi(open_storage(None, tmp_path))
    with make_server("127.0.0.1", 0, app, handler_class=_Silent) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()
        thread.join()


def _get(url: str) -> Any:
    with urlopen(url, timeout=10) as answer:
        return json.load(answer)


def test_the_dashboard_shows_readable_names_and_attributes(address: str) -> None:
    studies = {study["study_name"]: study["study_id"] for study in _get(f"{address}/studies")["study_summaries"]}
    assert set(studies) == {"search", "finalists"}
    search = _get(f"{address}/studies/{studies['search']}?after=0")
    assert search["objective_names"] == [METRIC]
    attributes = [{item["key"]: item["value"] for item in trial["user_attrs"]} for trial in search["trials"]]
    assert [of_trial.get("role", "sampled") for of_trial in attributes] == ["base", "user", "sampled", "sampled"]
    assert all(METRIC in of_trial["scores"] for of_trial in attributes)
    assert {param["name"] for param in search["trials"][1]["params"]} >= {"learning_rate", "temperature"}
