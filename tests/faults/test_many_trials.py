"""200 trials on two slots: quick, in flat memory, and the same set of trials however often the driver is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tuner.study.study import read_studies

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]
SCRIPT = Path(__file__).with_name("many_trials.py")
TRIALS = 200


def _start(run_dir: Path, sampler: str) -> subprocess.Popen[str]:
    run_dir.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    command = [sys.executable, str(SCRIPT), str(run_dir), str(TRIALS), sampler]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def _trials(run_dir: Path) -> set[tuple[object, ...]]:
    trials = read_studies(run_dir)[0].trials
    return {(t.number, t.state.name, t.value, tuple(sorted(t.params.items()))) for t in trials}


def test_two_hundred_trials_take_half_a_minute_and_no_memory(tmp_path: Path) -> None:
    output = _start(tmp_path / "run", "tpe").communicate()[0]
    figures = json.loads(output.splitlines()[-1])
    print(figures)
    assert len(_trials(tmp_path / "run")) == TRIALS
    assert figures["seconds"] < 30
    assert figures["memory_mib"][-1] - figures["memory_mib"][1] < 30


def test_ten_kills_at_random_moments_end_with_the_same_trials(tmp_path: Path) -> None:
    """Suggestions are a function of the trial's number here, so the whole set can be compared."""
    assert _start(tmp_path / "straight", "random").wait() == 0
    rng = random.Random(0)
    for _ in range(10):
        search = _start(tmp_path / "killed", "random")
        assert search.stdout is not None
        assert any("begun" in line for line in search.stdout)
        time.sleep(rng.uniform(0, 1.5))
        search.kill()
        assert search.wait() == -signal.SIGKILL
    assert _start(tmp_path / "killed", "random").wait() == 0
    assert _trials(tmp_path / "killed") == _trials(tmp_path / "straight")
    assert _worked_twice(tmp_path / "killed") <= 2 * 10


def _worked_twice(run_dir: Path) -> int:
    """Rungs that were worked for more than once: at most those in the two slots when the driver was killed."""
    worked = [Counter(path.read_text().split()) for path in run_dir.glob("trials/*/worked.txt")]
    return sum(count - 1 for counts in worked for count in counts.values())
