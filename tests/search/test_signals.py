"""Signals before and after the running search; tests/faults has those that come while it runs."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from tests.support.fake import fake_train
from tests.support.m3_fixtures import make_model, make_rows
from tuner.cluster.executor import run_in_process
from tuner.cluster.slot import Slots
from tuner.interrupts import Interrupted, SearchStopped, interruptible, interrupting
from tuner.request.config import SearchConfig
from tuner.run_dir.ownership import mark
from tuner.run_dir.store import open_run_dir
from tuner.schedule.agenda import Agenda
from tuner.search.run import main
from tuner.search.session import Session

SIGNALS = pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)


@pytest.fixture(autouse=True)
def _own_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of the process that runs the tests, which `nohup` may have started, and which keeps its terminal."""
    monkeypatch.setattr("tuner.interrupts._leave_the_terminal", lambda: None)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """A small search in `tmp_path`/run."""
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    data = ["--model_name_or_path", str(model), "--train_data", str(rows)]
    return [*data, "--num_trials", "3", "--finalists", "0", "--run_dir", str(tmp_path / "run")]


def _stop_planning(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    def plan(*_: Any, **__: Any) -> None:
        signal.raise_signal(number)
        raise AssertionError("the signal was not heard")

    monkeypatch.setattr("tuner.planning.plan.make_plan", plan)


@SIGNALS
def test_before_there_is_a_study_a_search_just_stops(
    number: signal.Signals,
    exit_code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _stop_planning(monkeypatch, number)
    before = signal.getsignal(number)
    assert main(["--train_data", "rows.jsonl", "--run_dir", str(tmp_path / "run")]) == exit_code
    said = capsys.readouterr()
    assert said.err == "stopped\n"
    assert said.out.startswith("m3-tuner ")
    assert said.out.count("\n") == 1
    assert signal.getsignal(number) == (signal.SIG_IGN if number == signal.SIGHUP else before)


@SIGNALS
def test_a_search_that_is_taken_up_again_says_how_to_go_on(
    number: signal.Signals,
    exit_code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _stop_planning(monkeypatch, number)
    mark(tmp_path)
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(SearchConfig(arguments={"train_data": ["rows.jsonl"]}).to_dict())
    )
    assert main(["--resume", str(tmp_path)]) == exit_code
    said = capsys.readouterr()
    assert f"Go on with:\npython -m tuner.search --resume {tmp_path}" in said.out
    assert said.err == ""


@SIGNALS
def test_a_signal_while_ray_starts(
    number: signal.Signals,
    exit_code: int,
    asked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """There is a study by then."""
    monkeypatch.setattr("tuner.cluster.connection.ray.init", lambda **_: signal.raise_signal(number))
    assert main(asked) == exit_code
    assert f"Go on with:\npython -m tuner.search --resume {tmp_path / 'run'}" in capsys.readouterr().out


@SIGNALS
def test_a_signal_while_the_result_is_written(
    number: signal.Signals,
    exit_code: int,
    asked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The search itself runs here, and leaves a handler behind as Ray does."""

    def run(agenda: Agenda, *_: Any, **__: Any) -> None:
        run_in_process(agenda, fake_train)

    @contextmanager
    def connected(_: SearchConfig) -> Iterator[None]:
        signal.signal(number, lambda *_: None)
        yield

    def conclude(*_: Any, **__: Any) -> None:
        signal.raise_signal(number)
        raise AssertionError("the signal was not heard")

    slots = Slots(count=1, workers=1, cpus=1, gpus=0, folder=tmp_path)
    monkeypatch.setattr("tuner.search.driver.connected", connected)
    monkeypatch.setattr("tuner.search.driver.rays_folder", lambda *_: tmp_path)
    monkeypatch.setattr("tuner.search.driver.slots_for", lambda *_: slots)
    monkeypatch.setattr("tuner.search.driver.run_on_ray", run)
    monkeypatch.setattr("tuner.search.driver.conclude", conclude)
    assert main(asked) == exit_code
    assert f"Go on with:\npython -m tuner.search --resume {tmp_path / 'run'}" in capsys.readouterr().out


def test_how_to_go_on_is_said_once(tmp_path: Path) -> None:
    console, config = Console(record=True, width=200), SearchConfig()
    session = Session(store=open_run_dir(str(tmp_path)), console=console)
    with pytest.raises(Interrupted), session.ending_in_order(config), session.ending_in_order(config):
        raise SearchStopped("the disk is full")
    assert console.export_text() == (
        "stopped: the disk is full; nothing that was finished is lost. "
        f"Go on with:\npython -m tuner.search --resume {tmp_path}\n"
    )


def _left_by_the_first_signal() -> None:
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_a_second_signal_ends_the_process() -> None:
    with pytest.raises(Interrupted), interrupting():
        _left_by_the_first_signal()


def test_a_running_search_is_left_where_it_asks() -> None:
    with interrupting():
        with interruptible() as check:
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(Interrupted):
                check()
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


TWICE = """
import os, signal, sys, threading, time
from tuner.interrupts import Interrupted, interruptible
with interruptible() as check:
    threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGTERM)).start()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
    try:
        check()
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
"""


@pytest.mark.parametrize(("seconds", "exit_code"), [(0.02, 143), (0.5, -signal.SIGTERM)])
def test_a_second_signal_ends_at_once_unless_it_is_the_first_to_the_group(seconds: float, exit_code: int) -> None:
    assert subprocess.run([sys.executable, "-c", TWICE, str(seconds)], check=False).returncode == exit_code


CLOSED = """
import sys, time
from tuner.interrupts import Interrupted, interrupting
try:
    with interrupting():
        print("ready", flush=True)
        time.sleep(60)
except Interrupted as interrupted:
    print("to nobody", flush=True)
    sys.exit(interrupted.exit_code)
"""


def test_who_loses_the_terminal_ends_in_order() -> None:
    child, terminal = pty.fork()
    if child == 0:
        try:
            os.execv(sys.executable, [sys.executable, "-c", CLOSED])
        finally:
            os._exit(127)
    said = os.read(terminal, 100)
    os.close(terminal)  # ends the child in any case
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    assert b"ready" in said


BROKEN = """
import sys
from tuner.search.terminal import new_console, say
console = new_console()
sys.stdin.read(1)
for _ in range(2):
    say(console, "to nobody")
sys.exit(129)
"""


def test_a_reader_that_is_gone_ends_no_search() -> None:
    """As `tee`, which a closed terminal ends too."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", BROKEN], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    process.stdin.close()
    assert process.wait(60) == 129


def test_what_nohup_has_started_goes_on() -> None:
    program = f"import os, signal\n{CLOSED}".replace("time.sleep(60)", "os.kill(os.getpid(), signal.SIGHUP)")
    ended = subprocess.run(["nohup", sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "ready\n"
