"""The study's storage as its one writer reads it: Optuna's own contract, and what is kept beneath it."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import FrozenTrial, TrialState

from tests.support import mariadb, postgres
from tuner.errors import RequestError
from tuner.interrupts import SearchStopped
from tuner.study.storage import PatientStorage, RememberedStorage, open_storage, require_study

_Answer = TypeVar("_Answer")


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    with postgres.running_server() as server:
        yield server.url


@pytest.fixture(scope="module")
def mysql() -> Iterator[str]:
    with mariadb.running_server() as url:
        yield url


@pytest.fixture(params=["study.db", "study.journal", "postgresql", "mysql"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BaseStorage]:
    """Where a study can be kept; a database server holds what earlier tests left in it."""
    if request.param == "study.db":
        url = None
    else:
        url = str(tmp_path / request.param) if "." in request.param else request.getfixturevalue(request.param)
    storage = open_storage(url, tmp_path)
    for study in storage.get_all_studies():
        storage.delete_study(study._study_id)
    yield storage
    storage.remove_session()


class TestRememberedStorage(StorageTestCase):
    """Optuna's suite for storages."""

    @pytest.fixture
    def storage(self, kept: BaseStorage) -> BaseStorage:
        return RememberedStorage(kept)


def _facts(trials: list[FrozenTrial]) -> list[tuple[object, ...]]:
    return [
        (t.number, t.state, t.values, t.params, t.distributions, t.intermediate_values, t.user_attrs, t.system_attrs)
        for t in trials
    ]


def _searched(storage: BaseStorage) -> optuna.Study:
    """A finished, a running and a waiting trial in the second of two studies."""
    optuna.create_study(storage=storage, study_name="other")
    study = optuna.create_study(storage=storage, study_name="search")
    study.set_user_attr("data_hash", "aaaa")
    study.enqueue_trial({"x": 0.25}, user_attrs={"role": "user"})
    study.enqueue_trial({"x": 0.75})
    for number in range(2):
        trial = study.ask()
        trial.report(trial.suggest_float("x", 0, 1), step=1)
        trial.set_user_attr("scores", {"ndcg": 0.5})
        if number == 0:
            study.tell(trial, 0.25)
    study.enqueue_trial({"x": 0.5})
    return study


def test_what_is_remembered_is_what_is_kept(kept: BaseStorage) -> None:
    remembered = _searched(RememberedStorage(kept))
    stored = optuna.load_study(study_name="search", storage=kept)
    assert [trial.state.name for trial in stored.trials] == ["COMPLETE", "RUNNING", "WAITING"]
    assert _facts(stored.trials) == _facts(remembered.trials)
    assert stored.user_attrs == remembered.user_attrs == {"data_hash": "aaaa"}


def test_it_goes_on_where_another_process_ended(kept: BaseStorage) -> None:
    before = _searched(RememberedStorage(kept))
    study = optuna.load_study(study_name="search", storage=RememberedStorage(kept))
    assert _facts(study.trials) == _facts(before.trials)
    study.tell(1, 0.75)
    study.ask().suggest_float("x", 0, 1)
    stored = optuna.load_study(study_name="search", storage=kept)
    assert [trial.state.name for trial in stored.trials] == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert [trial.params["x"] for trial in stored.trials] == [0.25, 0.75, 0.5]


def test_nothing_is_read_while_a_search_runs(kept: BaseStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What made each trial dearer than the one before."""
    study = _searched(RememberedStorage(kept))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the storage was read")

    for name in ("get_all_trials", "get_trial"):
        monkeypatch.setattr(type(kept), name, refuse)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.report(0.5, step=1)
    trial.should_prune()
    assert len(study.get_trials(deepcopy=False)) == 3


def test_nothing_is_remembered_that_the_storage_did_not_take(
    kept: BaseStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = RememberedStorage(kept)
    study_id = storage.create_new_study([StudyDirection.MAXIMIZE], "search")
    trial_id = storage.create_new_trial(study_id)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("disk full")

    for name in ("set_trial_param", "set_trial_user_attr", "set_trial_intermediate_value", "set_trial_state_values"):
        monkeypatch.setattr(type(kept), name, refuse)
    writes = (
        lambda: storage.set_trial_param(trial_id, "x", 0.5, FloatDistribution(0, 1)),
        lambda: storage.set_trial_user_attr(trial_id, "seed", 1),
        lambda: storage.set_trial_intermediate_value(trial_id, 1, 0.5),
        lambda: storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.5]),
    )
    for write in writes:
        with pytest.raises(OSError, match="disk full"):
            write()
    trial = storage.get_trial(trial_id)
    assert (trial.params, trial.user_attrs, trial.intermediate_values) == ({}, {}, {})
    assert trial.state is TrialState.RUNNING


_FULL_FOR_A_WHILE = """
import json, resource, sys
from pathlib import Path
import optuna
from tuner.study.storage import PatientStorage
from tuner.study.storage import open_storage

journal = Path(sys.argv[1])
inner = open_storage(str(journal), journal.parent)
study = optuna.create_study(storage=PatientStorage(inner, say=lambda _: unlimited()), study_name="search")
unlimited = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 20, resource.RLIM_INFINITY))
study.set_user_attr("data_hash", "a" * 100)
"""


def test_a_journal_on_a_disk_that_was_full_can_be_read(tmp_path: Path) -> None:
    """Of the line, 20 bytes had room; it is written again when all of it has."""
    journal = tmp_path / "study.journal"
    subprocess.run([sys.executable, "-c", _FULL_FOR_A_WHILE, str(journal)], check=True)
    study = optuna.load_study(study_name="search", storage=open_storage(str(journal), tmp_path))
    assert study.user_attrs == {"data_hash": "a" * 100}
    assert [json.loads(line)["op_code"] for line in journal.read_text().splitlines()] == [0, 2]


@pytest.mark.parametrize("content", ["epoch 1\nepoch 2, not ended", "one line, not ended", "{}\n{", '{"op": 1}\n'])
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(content: str, tmp_path: Path) -> None:
    (tmp_path / "training.log").write_text(content)
    with pytest.raises(RequestError, match=r"training\.log: is no journal of a study, and was left as it is"):
        open_storage(str(tmp_path / "training.log"), tmp_path)
    assert (tmp_path / "training.log").read_text() == content


@pytest.mark.parametrize("content", ["", '{"op_co', '{"op_code":0,"worker_'])
def test_a_journal_whose_first_line_was_cut_off_is_begun_anew(content: str, tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_text(content)
    storage = open_storage(str(tmp_path / "study.journal"), tmp_path)
    optuna.create_study(study_name="search", storage=storage)
    assert [study.study_name for study in storage.get_all_studies()] == ["search"]


@pytest.mark.parametrize(
    "url",
    [
        "mysql+nodriver://u:hunter2@h/db",
        "mysql+oursql://u:hunter2@h/db",
        "sqlite+pysqlcipher://:hunter2@/x.db",
        "nonsense://u:hunter2@h",
        "u:hunter2@h/db",
        "postgresql+psycopg://u:hunter2@h:notaport/db",
        "postgresql://h/db?user=u&PASSWORD=hunter2",
        "nonsense://h/db?Client_Secret=hunter2",
    ],
)
def test_a_storage_that_cannot_be_opened_is_the_request_s_error_without_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no study can be read there") as refused:
        open_storage(url, tmp_path)
    assert "hunter2" not in str(refused.value)


def test_a_storage_that_was_given_up_is_not_waited_for_again() -> None:
    """What is still to be written as the search ends is tried once."""
    attempts, said = list[None](), list[str]()

    def away() -> None:
        attempts.append(None)
        raise OSError("connection refused")

    storage = PatientStorage(InMemoryStorage(), say=said.append, seconds=0.3)
    with pytest.raises(SearchStopped, match="has not answered"):
        storage.ask(away)
    assert len(attempts) > 1
    attempts.clear()
    with pytest.raises(SearchStopped, match="has not answered"):
        storage.ask(away)
    assert len(attempts) == len(said) == 1


class _AnswersGetLost(InMemoryStorage):
    """Takes what is written, and fails to say so every first time."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = set[str]()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        asked = "an enqueued trial" if template_trial else "a new trial"
        return self._answer(asked, super().create_new_trial(study_id, template_trial))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        return self._answer(f"{trial_id} {state}", super().set_trial_state_values(trial_id, state, values))

    def _answer(self, asked: str, answer: _Answer) -> _Answer:
        if asked not in self.lost:
            self.lost.add(asked)
            raise OSError("connection reset")
        return answer


def test_what_a_lost_answer_had_confirmed_is_not_written_twice() -> None:
    """Of each write the first answer is lost: an enqueued trial, its start and end, and a new trial."""
    kept = _AnswersGetLost()
    storage = RememberedStorage(PatientStorage(kept, say=lambda _: None))
    study = optuna.create_study(storage=storage, study_name="search")
    study.enqueue_trial({"x": 0.25})
    study.tell(study.ask(), 0.5)
    assert study.ask().number == 1
    for told in (study, optuna.load_study(study_name="search", storage=kept)):
        assert [trial.state.name for trial in told.trials] == ["COMPLETE", "RUNNING"]


def test_a_trial_that_was_not_taken_is_created_when_the_storage_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = InMemoryStorage()
    create, attempts = kept.create_new_trial, list[int]()

    def refuses_once(study_id: int, template_trial: FrozenTrial | None = None) -> int:
        attempts.append(study_id)
        if len(attempts) == 1:
            raise OSError("connection refused")
        return create(study_id, template_trial)

    monkeypatch.setattr(kept, "create_new_trial", refuses_once)
    study = optuna.create_study(storage=PatientStorage(kept, say=lambda _: None))
    assert [study.ask().number, study.ask().number] == [0, 1]
    assert len(attempts) == 3


@pytest.mark.parametrize("name", ["exp?a", "50%25", "a#b", "a b"])
def test_a_run_directory_of_any_name_has_its_study_in_it(name: str, tmp_path: Path) -> None:
    """SQLAlchemy ends a path at ``?``, and decodes what follows ``%``."""
    run_dir = tmp_path / name
    run_dir.mkdir()
    optuna.create_study(storage=open_storage(None, run_dir), study_name="search")
    assert [file.name for file in run_dir.iterdir()] == ["study.db"]
    assert [folder.name for folder in tmp_path.iterdir()] == [name]
    require_study(None, run_dir, "search")
