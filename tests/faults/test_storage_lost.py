"""A study on a server that goes away, comes back, or does not; and a study file that cannot be read."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from tests.support.fake import fake_train, new_agenda, new_study
from tests.support.m3_fixtures import make_model, make_rows
from tests.support.postgres import PASSWORD, Server, running_server
from trainables.config import Progress, Report, Train, TrialConfig
from tuner.cluster.executor import run_in_process
from tuner.interrupts import SearchStopped
from tuner.planning.plan import make_plan
from tuner.request.asked import write_config
from tuner.request.command_line import parse
from tuner.request.config import SearchConfig
from tuner.request.storage_url import PASSWORD_VARIABLE
from tuner.search.run import main
from tuner.study.storage import PatientStorage, open_storage
from tuner.study.study import read_studies

CONFIG = SearchConfig(num_trials=6, finalists=0, pruner="successive_halving", rungs=(0.25, 0.5, 1.0))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


def _without_server(server: Server, seconds: float | None) -> Train:
    """Trains, and takes the server away as trial 3 ends, to bring it back after some seconds."""

    def train(config: TrialConfig, report: Report, progress: Progress) -> None:
        fake_train(config, report, progress)
        if config.name == "0003":
            server.stop()
            if seconds is not None:
                threading.Timer(seconds, server.start).start()

    return train


def _search(config: SearchConfig, run_dir: Path, train: Train, patience: float = 60) -> list[str]:
    said: list[str] = []
    run_dir.mkdir(exist_ok=True)
    storage = PatientStorage(open_storage(config.storage, run_dir), say=said.append, seconds=patience)
    try:
        run_in_process(new_agenda(config, new_study(config, storage), run_dir), train)
    finally:
        storage.remove_session()
    return said


def _trials(config: SearchConfig, run_dir: Path) -> list[tuple[object, ...]]:
    search, _ = read_studies(run_dir, config.storage, config.study_name)
    return [(t.number, t.state.name, t.value, t.params, t.intermediate_values) for t in search.trials]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    """The same search in a file."""
    run_dir = tmp_path_factory.mktemp("straight")
    _search(CONFIG, run_dir, fake_train)
    return _trials(CONFIG, run_dir)


@pytest.mark.integration
def test_a_server_that_comes_back_is_waited_for(
    server: Server, straight: list[tuple[object, ...]], tmp_path: Path
) -> None:
    config = CONFIG.replace(storage=server.url, study_name="back")
    lost, back = _search(config, tmp_path, _without_server(server, seconds=2))
    assert "does not answer" in lost
    assert "is back after" in back
    assert PASSWORD not in lost
    assert _trials(config, tmp_path) == straight


def test_a_server_that_stays_away_stops_the_search_which_goes_on_later(
    server: Server, straight: list[tuple[object, ...]], tmp_path: Path
) -> None:
    config = CONFIG.replace(storage=server.url, study_name="away")
    started = time.monotonic()
    with pytest.raises(SearchStopped, match="has not answered for 1 s"):
        _search(config, tmp_path, _without_server(server, seconds=None), patience=1)
    assert time.monotonic() - started < 30
    server.start()
    assert _search(config, tmp_path, fake_train) == []
    assert _trials(config, tmp_path) == straight


def test_two_searches_in_one_database_do_not_mix(server: Server, tmp_path: Path) -> None:
    for name in ("one", "two"):
        config = CONFIG.replace(storage=server.url, study_name=name, num_trials=3)
        _search(config, tmp_path / name, fake_train)
        assert len(_trials(config, tmp_path / name)) == 3


@pytest.fixture
def request_flags(tmp_path: Path) -> list[str]:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    return ["--model_name_or_path", str(model), "--train_data", str(rows), "--run_dir", str(tmp_path / "run")]


def test_a_password_is_written_nowhere(
    request_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://tuner:{PASSWORD}@127.0.0.1:1/none"  # nobody listens there
    assert main([*request_flags, "--storage", url]) == 2
    said = capsys.readouterr()
    assert "--storage postgresql://tuner:***@127.0.0.1:1/none: no study can be read there" in said.err
    written = [path.read_text(errors="replace") for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert PASSWORD not in said.out + said.err + "".join(written)

    run_dir = tmp_path / "run"
    run_dir.mkdir(exist_ok=True)
    flags = [*request_flags, "--storage", url]
    plan = make_plan(parse(flags), run_dir, lambda _: None)
    write_config(plan.config, plan.run_dir, flags)
    assert main(["--resume", str(run_dir)]) == 2
    assert f"in the environment variable {PASSWORD_VARIABLE}" in capsys.readouterr().err
    monkeypatch.setenv(PASSWORD_VARIABLE, url)
    assert main(["--resume", str(tmp_path / "run")]) == 2
    assert "is the server up" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["no database", "cut short", "a journal of something else"])
def test_a_study_that_cannot_be_read_is_told_and_left_alone(
    damage: str, request_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, flags = tmp_path / "run", list[str]()
    run_dir.mkdir()
    plan = make_plan(parse(request_flags), run_dir, lambda _: None)
    write_config(plan.config, plan.run_dir, request_flags)
    _search(CONFIG, run_dir, fake_train)
    study = run_dir / "study.db"
    if damage == "no database":
        study.write_bytes(b"\0" * 4096)
    elif damage == "cut short":
        study.write_bytes(study.read_bytes()[: study.stat().st_size // 2])
    else:
        study = run_dir / "study.journal"
        study.write_text('{"op_code": "unknown"}\n')
        flags = ["--storage", str(study)]
    before = study.read_bytes()
    assert main(["--resume", str(run_dir), *flags]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "no study can be read there" in line
    assert "put back a copy of the file" in line
    assert study.read_bytes() == before


def test_a_journal_whose_last_line_was_cut_goes_on(straight: list[tuple[object, ...]], tmp_path: Path) -> None:
    """As a process leaves it that was killed while it wrote."""
    config = CONFIG.replace(storage=str(tmp_path / "study.journal"))
    _search(config.replace(num_trials=4), tmp_path, fake_train)
    with (tmp_path / "study.journal").open("a") as journal:
        journal.write('{"op_code": 5, "worker_id"')
    _search(config, tmp_path, fake_train)
    assert _trials(config, tmp_path) == straight
    assert optuna.trial.TrialState.RUNNING.name not in {state for _, state, *_ in _trials(config, tmp_path)}
