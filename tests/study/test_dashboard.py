"""optuna-dashboard on the study of a search: names and attributes as a person reads them."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import optuna_dashboard
import pytest

from tests.support.fake import METRIC, fake_train, open_agenda
from tests.support.report_fixtures import build_run
from tuner.cluster.executor import run_in_process
from tuner.request.config import SearchConfig
from tuner.search.dashboard_note import note_verdict
from tuner.study.storage import open_storage
from tuner.verdict.result import Verdict


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


def test_the_dashboard_has_the_verdict_as_a_note(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", queries=60, gain=0.08)
    result = Verdict.read(run)
    assert result is not None
    storage = open_storage(None, run)
    study = optuna.load_study(study_name="search", storage=storage)
    note_verdict(study, result)
    note = optuna_dashboard._note.get_note_from_system_attrs(storage.get_study_system_attrs(study._study_id), None)
    assert note["body"].startswith("# Fine-tune")
    assert "| base model | 0.6020 |" in note["body"]
    assert "《战国无双3》" in note["body"]  # it got worse
    assert "<script>" not in note["body"].replace("\\<", "")
    assert "\\<script\\>alert" in note["body"]
