"""The driver's own process: killed, told to end once or twice, refused. Nothing is orphaned, nothing is lost."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import tuner
from tests.support.fake import fake_train, new_agenda, new_study
from tests.support.m3_fixtures import make_model, make_rows
from tuner.cluster.executor import run_in_process
from tuner.errors import RequestError
from tuner.planning.plan import make_plan
from tuner.request.asked import write_config
from tuner.request.command_line import parse
from tuner.request.config import SearchConfig
from tuner.search.run import main
from tuner.study.claim import claim, facts
from tuner.study.storage import open_storage
from tuner.study.study import read_studies

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
DRIVER = Path(__file__).with_name("driver.py")


class Driver:
    """The command in a process of its own, with a train function of `fault_trains`.

    Args:
        folder: With `model` and `rows.jsonl`; its output goes to `out.txt` there.
        train: The function's name.
        flags: Beside those that name model and data.
    """

    def __init__(self, folder: Path, train: str, *flags: str) -> None:
        self.out = folder / "out.txt"
        command = [sys.executable, "-u", str(DRIVER), train, *flags]
        environment = {**os.environ, "PYTHONPATH": str(DRIVER.parents[2])}
        with self.out.open("a") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, env=environment)
        self.children: list[psutil.Process] = []
        self.started = time.time()

    def wait_for(self, trial: str, rung: int = 0, seconds: float = 120) -> None:
        """Returns when this command has begun the trial, RUN/NUMBER, and that has worked for a rung."""
        run_dir, _, number = trial.rpartition("/")
        folder = self.out.parent / run_dir / "trials" / number
        deadline = time.monotonic() + seconds
        while not (_is_newer(folder / "config.json", self.started) and (not rung or _has_worked(folder, rung))):
            assert self.process.poll() is None, self.out.read_text()
            assert time.monotonic() < deadline, self.out.read_text()
            time.sleep(0.05)
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def end(self, seconds: float = 60) -> int:
        """Waits for the end; returns the exit code."""
        return self.process.wait(seconds)

    def orphans(self) -> list[str]:
        """What still runs of the processes that the command had started.

        Ray's own agents end last: where the driver was killed, they first wait to tell a server that died with it.
        """
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            left = [c for c in self.children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]
            if not left:
                return []
            time.sleep(0.2)
        return [" ".join(child.cmdline()) for child in left]


def _is_newer(file: Path, moment: float) -> bool:
    try:
        return file.stat().st_mtime > moment
    except FileNotFoundError:
        return False


def _has_worked(folder: Path, rung: int) -> bool:
    worked = folder / "worked.txt"
    return worked.exists() and str(rung) in worked.read_text().split()


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    make_model(tmp_path / "model")
    make_rows(tmp_path / "rows.jsonl", rows=120)
    return ["--model_name_or_path", "model", "--train_data", "rows.jsonl", "--run_dir", "run", "--num_trials", "6"]


def _states(tmp_path: Path) -> list[str]:
    return [trial.state.name for trial in read_studies(tmp_path / "run")[0].trials]


def _worked(tmp_path: Path) -> list[str]:
    return (tmp_path / "run" / "trials" / "0001" / "worked.txt").read_text().split()


@pytest.mark.slow
def test_killed_and_resumed(flags: list[str], tmp_path: Path) -> None:
    """SIGKILL in the middle of trial 1: no finished trial runs again, no finished rung either."""
    driver = Driver(tmp_path, "slow", *flags)
    driver.wait_for("run/0001", rung=2)  # the first is told
    driver.process.kill()
    assert driver.end() == -signal.SIGKILL
    assert driver.orphans() == []
    assert _states(tmp_path)[:2] == ["COMPLETE", "RUNNING"]
    base = read_studies(tmp_path / "run")[0].trials[0]

    resumed = Driver(tmp_path, "slow", "--resume", "run")
    resumed.wait_for("run/0002")
    assert "COMPLETE" in _states(tmp_path)[1]
    assert sorted(set(_worked(tmp_path))) == ["1", "2", "3", "4"]
    assert len(_worked(tmp_path)) <= 5  # one rung at most was being worked for
    assert read_studies(tmp_path / "run")[0].trials[0] == base

    resumed.process.send_signal(signal.SIGTERM)
    assert resumed.end(10) == 143
    assert resumed.orphans() == []


@pytest.mark.slow
def test_ctrl_c_saves_the_running_trial(flags: list[str], tmp_path: Path) -> None:
    driver = Driver(tmp_path, "long_rung", *flags)
    driver.wait_for("run/0001")
    time.sleep(4)
    driver.process.send_signal(signal.SIGINT)
    assert driver.end() == 130
    assert f"Go on with:python -m tuner.search --resume {tmp_path / 'run'}" in driver.out.read_text().replace("\n", "")
    assert (tmp_path / "run" / "trials" / "0001" / "saved.txt").exists()
    assert driver.orphans() == []
    assert _states(tmp_path)[1] == "RUNNING"


@pytest.mark.slow
@pytest.mark.timeout(800)
def test_a_line_run_again_loses_nothing(flags: list[str], tmp_path: Path) -> None:
    """FlagEmbedding's published lines carry --overwrite_output_dir; Ctrl-C, arrow up, Enter deleted every trial."""
    line, run_dir = [*flags, "--overwrite_output_dir"], tmp_path / "run"
    _until("run/0001", tmp_path, *line, rung=2)
    base = read_studies(run_dir)[0].trials[0]
    said = _until("run/0002", tmp_path, *line)
    assert f"{run_dir} holds the search of this request: going on with it, as --resume does" in said
    assert sorted(set(_worked(tmp_path))) == ["1", "2", "3", "4"]
    assert read_studies(run_dir)[0].trials[0] == base

    said = _until("run/0001", tmp_path, *line, "--temperature", "0.05")
    assert f"{run_dir} holds the search of another request: --temperature was None and is 0.05" in said
    (kept,) = run_dir.glob("replaced-*")
    assert f"the search before is kept: python -m tuner.search --resume {kept} goes on with it" in said
    assert len(read_studies(kept)[0].trials) == 3
    assert read_studies(kept)[0].trials[0] == base
    _until(f"{kept.relative_to(tmp_path)}/0003", tmp_path, "--resume", str(kept))
    assert read_studies(kept)[0].trials[0] == base


def _until(trial: str, tmp_path: Path, *flags: str, rung: int = 0) -> str:
    """Runs the command until it is at a trial, then Ctrl-C; returns what it has said."""
    (tmp_path / "out.txt").unlink(missing_ok=True)
    driver = Driver(tmp_path, "slow", *flags)
    driver.wait_for(trial, rung)
    driver.process.send_signal(signal.SIGINT)
    assert driver.end() == 130
    assert driver.orphans() == []
    return driver.out.read_text()


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once_and_orphans_nothing(flags: list[str], tmp_path: Path) -> None:
    driver = Driver(tmp_path, "deaf", *flags)
    driver.wait_for("run/0001")
    driver.process.send_signal(signal.SIGINT)
    time.sleep(2)
    assert driver.process.poll() is None  # the running trial has half a minute
    driver.process.send_signal(signal.SIGINT)
    assert driver.end(5) in (130, -signal.SIGINT)
    assert driver.orphans() == []


@pytest.mark.slow
def test_every_trial_fails(flags: list[str], tmp_path: Path) -> None:
    driver = Driver(tmp_path, "every_trial_fails", *flags)
    assert driver.end(200) == 3
    said = driver.out.read_text()
    assert "every trial failed (5)" in said
    assert said.count("Traceback") == 3  # trial 1, trial 2, and the others alike
    assert _states(tmp_path) == ["COMPLETE", *["FAIL"] * 5]


def test_a_second_search_in_the_same_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a lock that its process takes with it: once that is killed, the directory is free."""
    (tmp_path / "run").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, time; f = open({str(tmp_path / 'run' / '.lock')!r}, 'w'); "
         "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    assert main(["--run_dir", str(tmp_path / "run")]) == 2
    assert "another search is running there" in capsys.readouterr().err
    holder.kill()
    holder.wait()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run directory with three trials."""
    make_model(tmp_path / "model")
    make_rows(tmp_path / "rows.jsonl", rows=120)
    (tmp_path / "run").mkdir()
    request = ["--model_name_or_path", str(tmp_path / "model"), "--train_data", str(tmp_path / "rows.jsonl")]
    plan = make_plan(parse(request), tmp_path / "run", lambda _: None)
    write_config(plan.config, plan.run_dir, request)
    config = SearchConfig(num_trials=3, finalists=0)
    study = new_study(config, open_storage(None, tmp_path / "run"))
    claim(study.search, facts(plan.config, plan.dataset))
    run_in_process(new_agenda(config, study, tmp_path / "run"), fake_train)
    return tmp_path / "run"


def _contents(run_dir: Path) -> dict[str, tuple[bytes, int]]:
    """What a resumed search could spoil, and when it was written."""
    files = [run_dir / "config.yaml", *(path for path in (run_dir / "data").rglob("*") if path.is_file())]
    assert len(files) > 5
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def _study(run_dir: Path) -> dict[str, object]:
    search = read_studies(run_dir)[0]
    return {"trials": search.trials, "facts": search.user_attrs, "metrics": search.metric_names}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train_data", "other.jsonl"], "data_hash was"),
        (["--metric", "dense.mrr_at_10"], "metric was dense.ndcg_at_10 when the search began and is dense.mrr_at_10"),
        (["--metric", "dense.mrr_at_10,dense.ndcg_at_10"], "metric was"),
        (["--search_space", "example", "--train_data", "other.jsonl"], "search_space was None"),
    ],
    ids=["data", "metric", "two objectives", "space"],
)
def test_a_refused_resume_changes_nothing(
    flags: list[str],
    words: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_rows(tmp_path / "other.jsonl", rows=140)
    monkeypatch.chdir(tmp_path)
    before, study = _contents(finished), _study(finished)
    assert main(["--resume", str(finished), "--num_trials", "20", *flags]) == 2
    assert words in capsys.readouterr().err
    assert (_contents(finished), _study(finished)) == (before, study)


def test_python_is_refused_like_the_command(finished: Path, tmp_path: Path) -> None:
    make_rows(tmp_path / "rows.jsonl", rows=140)
    before, study = _contents(finished), _study(finished)
    with pytest.raises(RequestError, match="data_hash was"):
        tuner.run(tuner.SearchConfig(resume=str(finished)))
    assert (_contents(finished), _study(finished)) == (before, study)


@pytest.mark.slow
def test_the_same_line_over_other_data_is_another_request(finished: Path, tmp_path: Path) -> None:
    make_rows(tmp_path / "rows.jsonl", rows=140)
    data = ["--model_name_or_path", str(tmp_path / "model"), "--train_data", str(tmp_path / "rows.jsonl")]
    before = _study(finished)
    said = _until("run/0001", tmp_path, *data, "--run_dir", "run", "--overwrite_output_dir")
    assert f"{finished} holds the search of another request: data_hash was" in said
    (kept,) = finished.glob("replaced-*")
    assert _study(kept) == before

    _until("run/0001", tmp_path, *data, "--run_dir", "run", "--replace")
    assert list(finished.glob("replaced-*")) == [kept]
    assert len(_states(tmp_path)) == 2


def test_data_that_was_damaged_is_prepared_anew_on_resume(finished: Path) -> None:
    lost = next((finished / "data" / "train").iterdir())
    rows = lost.read_bytes()
    lost.unlink()
    config = parse(["--resume", str(finished)])
    plan = make_plan(config, finished, lambda _: None)
    assert lost.read_bytes() == rows
    assert plan.dataset.train_data == (str(lost),)
    assert not (finished / "data" / ".new").exists()
