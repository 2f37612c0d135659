"""Workers that die, freeze, run out of memory or raise: each costs its own trial at most.

One search holds all of the faults, one a trial; each test looks at what the study says of its own.
"""

from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from tests.faults.fault_trains import FAULTS, faulty, group_killed_once, steady
from tests.support.fake import open_agenda
from tests.support.left_over import left_over
from trainables.config import Train
from tuner.cluster.executor import run_in_process, run_on_ray
from tuner.cluster.slot import Slots
from tuner.request.config import SearchConfig
from tuner.schedule.agenda import Agenda
from tuner.study.study import read_studies
from tuner.study.trials import has_failed

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(580)]
CONFIG = SearchConfig(num_trials=15, finalists=0, sampler="random", pruner="none", rungs=(0.25, 0.5, 1.0))


def _search(run_dir: Path, slots: Slots, train: Train, config: SearchConfig = CONFIG) -> Agenda:
    agenda = open_agenda(config, run_dir)
    run_on_ray(agenda, slots, train=train)
    return agenda


@pytest.fixture(scope="module")
def run_dir(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the search with a fault in each trial."""
    assert cluster is None
    folder = tmp_path_factory.mktemp("faulty")
    slots = Slots(
        count=1, workers=1, cpus=1, gpus=0, folder=folder / ".ray", start_seconds=40, silence_seconds=6, idle_seconds=15
    )
    assert _search(folder, slots, faulty).has_winner
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    """The same search with nothing going wrong."""
    folder = tmp_path_factory.mktemp("straight")
    run_in_process(open_agenda(CONFIG, folder), steady)
    return read_studies(folder)[0]


def _trial(run_dir: Path, number: int) -> optuna.trial.FrozenTrial:
    return read_studies(run_dir)[0].trials[number]


def _attempts(run_dir: Path, number: int) -> list[str]:
    return (run_dir / "trials" / f"{number:04d}" / "attempts.txt").read_text().split()


def _check_unharmed(run_dir: Path, straight: optuna.Study, number: int) -> None:
    trial, same = _trial(run_dir, number), straight.trials[number]
    assert (trial.state.name, trial.value, trial.params) == ("COMPLETE", same.value, same.params)
    assert trial.intermediate_values == same.intermediate_values


def _check_failed(
    run_dir: Path, number: int, kind: str, message: str, attempts: int, *, infeasible: bool = False
) -> None:
    trial = _trial(run_dir, number)
    assert has_failed(trial)
    assert trial.state.name == ("PRUNED" if infeasible else "FAIL")
    assert trial.user_attrs["error_kind"] == kind
    assert message in trial.user_attrs["error"]
    assert len(_attempts(run_dir, number)) == attempts
    assert message in (run_dir / "trials" / f"{number:04d}" / "log.txt").read_text()


def test_every_trial_without_a_fault_is_as_ever(run_dir: Path, straight: optuna.Study) -> None:
    for number in {*range(1, CONFIG.num_trials)} - {int(name) for name in FAULTS}:
        _check_unharmed(run_dir, straight, number)


@pytest.mark.parametrize(("number", "cause"), [(2, "the worker group ended"), (3, "was silent for")])
def test_a_worker_killed_or_frozen_goes_on_from_its_state(
    number: int, cause: str, run_dir: Path, straight: optuna.Study
) -> None:
    """SIGKILL and SIGSTOP before the second rung: the first is not worked for again."""
    _check_unharmed(run_dir, straight, number)
    (retry,) = _trial(run_dir, number).user_attrs["retries"]
    assert retry.startswith("worker_lost: ")
    assert cause in retry
    assert (run_dir / "trials" / f"{number:04d}" / "worked.txt").read_text().split() == ["1", "2", "2", "3"]


def test_a_trial_that_kills_its_workers_is_given_up(run_dir: Path) -> None:
    _check_failed(run_dir, 4, "worker_lost", "the worker group ended", attempts=4)


def test_an_exception_in_the_data_loader_twice_is_an_end(run_dir: Path) -> None:
    _check_failed(run_dir, 5, "error", "row 3 has no 'pos'", attempts=2)
    _check_failed(run_dir, 6, "error", "row 3 has no 'pos'", attempts=2)
    for number in (5, 6):
        first, second = (run_dir / "trials" / f"{number:04d}" / "processes.txt").read_text().split()
        assert first != second


def test_errors_that_pass_are_survived(run_dir: Path, straight: optuna.Study) -> None:
    _check_unharmed(run_dir, straight, 7)
    assert len(_attempts(run_dir, 7)) == 3


def test_a_nan_loss_is_a_violated_constraint_at_once(run_dir: Path) -> None:
    _check_failed(run_dir, 8, "non_finite", "NonFiniteLoss", attempts=1, infeasible=True)


def test_a_nan_score_is_a_violated_constraint_at_once(run_dir: Path) -> None:
    _check_failed(run_dir, 9, "non_finite", "NonFiniteScore", attempts=1, infeasible=True)


def test_too_little_memory_is_answered_with_sub_batches(run_dir: Path, straight: optuna.Study) -> None:
    """At 128 MiB a passage and 600 MiB in all, 4 passages fit and 5 do not."""
    _check_unharmed(run_dir, straight, 10)
    whole, *sizes = _attempts(run_dir, 10)
    assert whole == "None"
    assert [int(size) for size in sizes] == [int(sizes[0]) >> k for k in range(len(sizes))]
    assert 2 <= int(sizes[-1]) <= 4


def test_too_little_memory_for_one_passage_is_infeasible(run_dir: Path) -> None:
    trial = _trial(run_dir, 11)
    assert (trial.state.name, trial.user_attrs["infeasible"]) == ("PRUNED", True)
    assert "can't allocate memory" in trial.user_attrs["error"]
    sizes = _attempts(run_dir, 11)
    assert sizes[-1] == "1"
    assert len(set(sizes)) == len(sizes)  # never the same twice


def test_a_slot_whose_process_dies_is_replaced(run_dir: Path, straight: optuna.Study) -> None:
    _check_unharmed(run_dir, straight, 12)
    (retry,) = _trial(run_dir, 12).user_attrs["retries"]
    assert retry.startswith("worker_lost: the slot's own process ended: ")


def test_a_worker_that_waits_for_ever_is_ended(run_dir: Path, straight: optuna.Study) -> None:
    _check_unharmed(run_dir, straight, 13)
    (retry,) = _trial(run_dir, 13).user_attrs["retries"]
    assert "was idle for" in retry


@pytest.mark.usefixtures("run_dir")
def test_nothing_is_left_of_the_search() -> None:
    assert left_over() == {}


def test_a_whole_group_is_killed(slots: Slots, straight: optuna.Study, tmp_path: Path) -> None:
    """Both workers of trial 2."""
    _search(tmp_path, replace(slots, workers=2, start_seconds=30), group_killed_once, CONFIG.replace(num_trials=4))
    _check_unharmed(tmp_path, straight, 2)
    assert len(_trial(tmp_path, 2).user_attrs["retries"]) == 1
    assert left_over() == {}
