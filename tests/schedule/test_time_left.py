"""How long a search is said to take still; values that can be reckoned in the head."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.fake import fake_train, open_agenda
from tuner.cluster.executor import run_in_process
from tuner.request.config import SearchConfig
from tuner.schedule.jobs import Row
from tuner.schedule.time_left import time_left

BASE = Row(name="0000", role="base", params={}, state="complete", started=0, ended=20, seconds={"scoring": 10.0})


def _config(**values: Any) -> SearchConfig:
    return SearchConfig(num_trials=6, **{"finalists": 0, **values})


def _trial(number: int, *, fraction: float = 1.0, role: str = "sampled", **values: Any) -> Row:
    seconds = {"training": 90.0 * fraction, "scoring": 10.0 * fraction}
    ended = {"state": "complete", "started": 0.0, "ended": 100.0, "seconds": seconds, "fraction": fraction}
    return Row(**{"name": f"{number:04d}", "role": role, "params": {}, **ended, **values})


def _in_its_first_steps(last: float, step: int, state: str = "running") -> Row:
    values: dict[str, Any] = {"state": state, "fraction": 0.0, "seconds": {}, "started": 25.0, "ended": None}
    return _trial(1, role="user", **values, steps=100, step=step, first_step=(30.0, 1), last_step=(last, step))


def test_nothing_is_said_before_a_trial_has_taken_two_steps() -> None:
    assert time_left(_config(), [BASE], 20) is None
    assert time_left(_config(), [BASE, _in_its_first_steps(30, 1)], 31) is None


def test_before_the_first_rung_it_is_told_by_the_steps() -> None:
    """A step in 2 s: 200 s a trial and 3 scorings of 10 s; of the first 25 s are spent; 4 to come; then the test."""
    config = _config(rungs=(0.25, 0.5, 1.0))
    assert time_left(config, [BASE, _in_its_first_steps(50, 11)], 50) == 230 - 25 + 4 * 230 + 30


def test_while_a_rung_is_scored_the_steps_take_no_longer() -> None:
    config = _config(rungs=(0.25, 0.5, 1.0))
    assert time_left(config, [BASE, _in_its_first_steps(50, 11)], 60) == 230 - 35 + 4 * 230 + 30


def test_an_attempt_that_ended_before_its_first_rung_tells_nothing() -> None:
    retried, again = _in_its_first_steps(50, 11, "retried"), _in_its_first_steps(30, 1)
    assert time_left(_config(), [BASE, retried, again], 60) is None
    again = _in_its_first_steps(50, 11)
    assert time_left(_config(rungs=(1.0,)), [BASE, retried, again], 60) == 210 - 35 + 4 * 210 + 30


@pytest.mark.parametrize(("slots", "left"), [(1, 400), (2, 200), (4, 100)])
def test_trials_to_come_are_shared_by_the_slots(slots: int, left: float) -> None:
    """Four trials of 100 s, and three scorings of test of 10 s."""
    assert time_left(_config(concurrent_trials=slots), [BASE, _trial(1, role="user")], 200) == left + 30


def test_a_time_budget_ends_the_trials_and_not_what_follows() -> None:
    rows = [BASE, _trial(1, role="user")]
    assert time_left(_config(), rows, 200, budget=150) == 150
    assert time_left(_config(), rows, 200, budget=10) == 30


def test_what_a_running_trial_has_done_is_not_counted_again() -> None:
    running = _trial(2, state="running", started=140.0, ended=None, fraction=0.5)
    assert time_left(_config(), [BASE, _trial(1, role="user"), running], 200) == 3 * 100 + 40 + 30


def test_trials_that_are_stopped_cost_less() -> None:
    rows = [BASE, _trial(1, role="user"), _trial(2, state="pruned", fraction=0.25)]
    assert time_left(_config(), rows, 200) == 3 * (100 + 25) / 2 + 30


def test_retrainings_cost_a_whole_training_each_round() -> None:
    config = _config(finalists=2, finalist_seeds=2, concurrent_trials=2)
    rows = [BASE, *(_trial(n, role="sampled") for n in range(1, 6))]
    assert time_left(config, rows, 200) == 2 * 100 + 30
    rows.append(_trial(3, role="finalist", name="0003-seed43"))
    assert time_left(config, rows, 200) == 2 * 100 + 30
    rows.append(_trial(3, role="finalist", name="0003-seed44"))
    assert time_left(config, rows, 200) == 100 + 30


def test_the_test_is_left_in_the_end() -> None:
    config = _config(finalists=2)
    rows = [BASE, *(_trial(n) for n in range(1, 4)), _trial(0, role="test", ended=12.0, seconds={}, fraction=0.0)]
    assert time_left(config, rows, 200) == 30 - 12


def test_of_a_finished_search_that_is_extended_all_its_new_trials_are_left(tmp_path: Path) -> None:
    """Its finalists of before are none of those to come: 8 trials more, and what follows, were told as nothing."""
    config = SearchConfig(num_trials=3, rungs=(0.5, 1.0), pruner="none", finalists=1, finalist_seeds=1)
    run_in_process(open_agenda(config, tmp_path), fake_train)
    again = open_agenda(config, tmp_path)
    assert [row.role for row in again.earlier] == ["base", "user", "sampled", "finalist"]
    extended = open_agenda(config.replace(num_trials=11), tmp_path)
    assert [row.role for row in extended.earlier] == ["base", "user", "sampled"]
