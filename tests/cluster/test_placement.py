# ruff: noqa: ARG001 (one signature for all)
"""Jobs on machines without a common disk: each with its own cache folder, and storage on a mounted one (file://)."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import tuner
import tuner.run_dir.mirror
from tests.support.fake import METRIC, fake_train, open_agenda
from trainables.config import Progress, Report, RungReport, TrialConfig
from trainables.failures import StorageAway
from tuner.cluster.executor import run_in_process
from tuner.cluster.staging import MARK, OnAnyMachine
from tuner.errors import RequestError
from tuner.interrupts import SearchStopped
from tuner.request.config import SearchConfig
from tuner.run_dir.mirror import Mirror, Pusher
from tuner.run_dir.prefix import Prefix
from tuner.run_dir.store import RunStore, open_run_dir
from tuner.study.study import read_studies

Machine = Callable[[str], RunStore]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Steps over to the machine of a name, and returns its working directory of the run; each has the base model."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")

    def step_over(name: str) -> RunStore:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return open_run_dir(f"file://{tmp_path}/storage/run")

    return step_over


def _job(store: RunStore, name: str = "0002", **changes: object) -> TrialConfig:
    values = {
        "name": name,
        "directory": str(store.local / "trials" / name),
        "arguments": {
            "train_data": [str(store.local / "data/train/000-a.jsonl")],
            "model_name_or_path": "/driver/model",
        },
        "eval_data": str(store.local / "data/eval"),
        "metric": METRIC,
        "rungs": (0.5, 1.0),
    }
    return TrialConfig(**{**values, **changes})  # type: ignore[arg-type]


def _driver(machine: Machine) -> RunStore:
    store = machine("driver")
    (store.local / "data/train").mkdir(parents=True)
    (store.local / "data/eval").mkdir()
    (store.local / "data/train/000-a.jsonl").write_text("{}\n")
    (store.local / "data/eval/corpus.jsonl").write_text("{}\n")
    (store.local / MARK).write_text("this one")
    store.push()
    return store


def _refuse(*_: object) -> None:
    """What storage does while it is away."""
    raise OSError("ExpiredToken")


def _does(store: RunStore, train: object, tmp_path: Path) -> OnAnyMachine:
    return OnAnyMachine(
        run_dir=store.url,
        root=str(store.local),
        mark="this one",
        model=str(tmp_path / "model"),
        model_path="/driver/model",
        deepspeed='{"zero_optimization": {"stage": 0}}',
        train=train,  # type: ignore[arg-type]
    )


def _on(rung: RungReport) -> bool:
    return True


def test_a_job_finds_its_data_and_leaves_its_files_in_storage(machine: Machine, tmp_path: Path) -> None:
    driver = _driver(machine)
    seen: list[TrialConfig] = []

    def train(config: TrialConfig, report: Report, progress: Progress) -> None:
        seen.append(config)
        assert Path(config.arguments["train_data"][0]).read_text() == "{}\n"
        assert (Path(config.eval_data) / "corpus.jsonl").exists()
        assert json.loads(Path(config.arguments["deepspeed"]).read_text())["zero_optimization"] == {"stage": 0}
        (Path(config.directory) / "checkpoint").mkdir()
        (Path(config.directory) / "checkpoint/model.safetensors").write_text("weights")
        (Path(config.directory) / "metrics.jsonl").write_text("{}\n")

    job = _job(driver)
    job = replace(job, arguments={**job.arguments, "deepspeed": "/driver/ds.json"})
    worker = machine("worker")
    _does(driver, train, tmp_path)(job, _on, lambda *_: None)

    assert Path(seen[0].directory) == worker.local / "trials/0002"
    assert seen[0].arguments["model_name_or_path"] == str(tmp_path / "model")
    assert not (worker.local / "trials/0002").exists()  # a worker's disk is not for keeping
    machine("driver").pull(["trials/0002"])
    assert (driver.local / "trials/0002/checkpoint/model.safetensors").read_text() == "weights"


def test_curves_come_to_storage_and_to_the_head(machine: Machine, tmp_path: Path) -> None:
    """Each trial's are a part of their own: workers of several trials write to storage at a time."""
    driver, events = _driver(machine), "events.out.tfevents.1700000000.host.1.0"

    def train(config: TrialConfig, report: Report, progress: Progress) -> None:
        curves = Path(config.directory).parents[1] / "tensorboard" / config.name
        curves.mkdir(parents=True)
        (curves / events).write_text(config.name)

    mirror = Mirror(driver)
    for name in ("0002", "0003"):
        worker = machine(f"worker of {name}")
        _does(driver, train, tmp_path)(_job(driver, name), _on, lambda *_: None)
        assert not list(worker.local.glob("tensorboard/*"))
        machine("driver")
        mirror.ended(name)
    mirror.settle()
    assert (driver.local / "tensorboard/0002" / events).read_text() == "0002"
    assert (driver.local / "tensorboard/0003" / events).read_text() == "0003"
    assert len(list((tmp_path / "storage/run/tensorboard").glob(f"000[23]/*/{events}"))) == 2


def test_a_worker_s_end_leaves_what_others_of_its_machine_use(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second rank of a group ends while the first one pushes, and a trial beside it before it has read the pool."""
    driver = _driver(machine)
    (driver.local / "trials/0000").mkdir(parents=True)
    (driver.local / "trials/0000/pool.json").write_text("the pool")
    driver.push(["trials/0000"])
    pool = str(driver.local / "trials/0000/pool.json")
    worker = machine("worker")
    shared, weights = worker.local / "trials/0000/pool.json", worker.local / "trials/0002/checkpoint/model.safetensors"
    ranks = iter([0, 0, 1])
    monkeypatch.setattr("tuner.cluster.staging.rank", lambda: next(ranks))

    def does(train: object, name: str) -> None:
        _does(driver, train, tmp_path)(_job(driver, name, pool=pool, pool_hash="0"), _on, lambda *_: None)

    def nothing(config: TrialConfig, report: Report, progress: Progress) -> None: ...

    def trains(config: TrialConfig, report: Report, progress: Progress) -> None:
        weights.parent.mkdir(parents=True)
        weights.write_text("weights")
        does(nothing, "0003")  # another slot's trial
        does(nothing, "0002")  # this trial's second rank
        assert shared.read_text() == "the pool"

    does(trains, "0002")
    assert not shared.exists()  # nobody uses it any more
    assert [path.name for path in (worker.local / "trials").iterdir()] == []
    assert machine("looks").pull(["trials/0002/checkpoint"])


def test_a_worker_s_end_leaves_what_another_could_not_push(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, worker = _driver(machine), machine("worker")
    log = worker.local / "trials/0002/log.txt"
    ranks = iter([0, 1, 0])
    monkeypatch.setattr("tuner.cluster.staging.rank", lambda: next(ranks))

    def train(config: TrialConfig, report: Report, progress: Progress) -> None:
        log.write_text("trained")

    does = _does(driver, train, tmp_path)
    with monkeypatch.context() as away:
        away.setattr(Pusher, "close", _refuse)
        with pytest.raises(StorageAway):
            does(_job(driver), _on, lambda *_: None)
    does(_job(driver), _on, lambda *_: None)  # the second rank, which ends last
    assert log.exists()
    does(_job(driver), _on, lambda *_: None)
    assert not log.exists()


def test_a_trial_goes_on_on_another_machine(machine: Machine, tmp_path: Path) -> None:
    driver = _driver(machine)

    def breaks(config: TrialConfig, report: Report, progress: Progress) -> None:
        state = Path(config.directory) / "resume/000000050"
        state.mkdir(parents=True)
        (state / "model.safetensors").write_text("half-way")
        progress(50, 100)
        raise RuntimeError("boom")

    def goes_on(config: TrialConfig, report: Report, progress: Progress) -> None:
        assert (Path(config.directory) / "resume/000000050/model.safetensors").read_text() == "half-way"
        assert "RuntimeError: boom" in (Path(config.directory) / "log.txt").read_text()

    machine("spot")
    with pytest.raises(RuntimeError, match="boom"):
        _does(driver, breaks, tmp_path)(_job(driver), _on, lambda *_: None)
    machine("another")
    _does(driver, goes_on, tmp_path)(_job(driver), _on, lambda *_: None)


@pytest.mark.parametrize("pruner", ["none", "promotion"])
def test_training_states_are_not_brought_to_the_driver(pruner: str, machine: Machine, tmp_path: Path) -> None:
    """They are in storage until the study was told that the trial ended, and then nowhere.

    By promotion, trials end that were stopped at a rung before.
    """
    driver, seen, jobs = _driver(machine), set[str](), list[str]()

    def train(config: TrialConfig, report: Report, progress: Progress) -> None:
        if config.rungs:
            (Path(config.directory) / "resume/000000050").mkdir(parents=True)
            (Path(config.directory) / "resume/000000050/model.safetensors").write_text("half-way")
        fake_train(config, report, progress)

    def elsewhere(job: TrialConfig, report: Report, progress: Progress) -> None:
        machine("worker")
        jobs.append(job.name)
        _does(driver, train, tmp_path)(job, report, progress)
        machine("looks").pull([f"trials/{job.name}"])
        seen.update(path.parts[-3] for path in machine("looks").local.glob("trials/*/resume/*"))

    pulled = list[str]()

    class Watched(Mirror):
        def ended(self, trial: str, *, stopped: bool = False) -> None:
            super().ended(trial, stopped=stopped)
            self.settle()
            pulled.extend(path.name for path in (driver.local / "trials").glob("*/resume/*"))

    mirror = Watched(driver)
    mirror.begin()
    config = SearchConfig(num_trials=9, finalists=0, pruner=pruner, rungs=(0.5, 1.0))
    run_in_process(open_agenda(config, driver.local, mirror=mirror), elsewhere)
    mirror.finish()
    promoted = {name for name in jobs if jobs.count(name) > 1}
    assert promoted & seen if pruner == "promotion" else seen >= {"0001", "0002"}
    assert pulled == []
    machine("yet another").pull()
    assert list(machine("yet another").local.glob("trials/*/resume/*")) == []


def test_what_a_promoted_trial_leaves_is_dropped_as_any_other_s(machine: Machine) -> None:
    """It was stopped at a rung, where its worker removes what is not worth its place, and then went on to its end."""
    driver, states = _driver(machine), ["trials/0002/resume", "trials/0002/checkpoint"]
    mirror = Mirror(driver)
    mirror.begun("0002")
    mirror.ended("0002", stopped=True)
    mirror.drop(states)
    mirror.begun("0002")
    worker = machine("worker")
    for folder in states:
        (worker.local / folder).mkdir(parents=True)
        (worker.local / folder / "model.safetensors").write_text("weights")
    worker.push()
    mirror.drop(states)
    mirror.ended("0002")
    mirror.settle()
    assert not list(driver.local.glob("trials/0002/*/*"))
    assert not machine("looks").pull(["trials/0002"])


def test_what_was_dropped_once_is_dropped_again_after_another_run(machine: Machine) -> None:
    mirror = Mirror(_driver(machine))
    mirror.drop(["trials/0002/resume"])
    mirror.settle()
    mirror.begun("0002")
    worker = machine("worker")
    (worker.local / "trials/0002/resume").mkdir(parents=True)
    (worker.local / "trials/0002/resume/state").write_text("half-way")
    worker.push()
    mirror.drop(["trials/0002/resume"])
    mirror.settle()
    assert not machine("looks").pull(["trials/0002"])


def test_the_drivers_own_machine_keeps_its_files(machine: Machine, tmp_path: Path) -> None:
    driver = _driver(machine)

    def train(config: TrialConfig, report: Report, progress: Progress) -> None:
        (Path(config.directory) / "metrics.jsonl").write_text("{}\n")

    _does(driver, train, tmp_path)(_job(driver), _on, lambda *_: None)
    assert (driver.local / "trials/0002/metrics.jsonl").exists()


def test_weights_of_a_stopped_trial_do_not_stay_in_storage(machine: Machine, tmp_path: Path) -> None:
    driver = _driver(machine)

    def train(config: TrialConfig, report: Report, progress: Progress) -> None:
        (Path(config.directory) / "checkpoint").mkdir()
        (Path(config.directory) / "checkpoint/model.safetensors").write_text("weights")
        (Path(config.directory) / "metrics.jsonl").write_text("{}\n")
        assert not report(
            RungReport(rung=1, fraction=0.5, step=1, examples=1, loss=1.0, value=0.1, scores={}, last=False)
        )

    machine("worker")
    _does(driver, train, tmp_path)(_job(driver), lambda _: False, lambda *_: None)
    machine("driver").pull(["trials/0002"])
    assert [path.name for path in (driver.local / "trials/0002").iterdir()] == ["metrics.jsonl"]


def test_storage_that_is_away_is_told_from_an_error_and_costs_no_training(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away when the trained trial is brought there, and when the next attempt begins."""
    driver, worker = _driver(machine), machine("worker")
    weights = worker.local / "trials/0002/checkpoint/model.safetensors"

    def train(config: TrialConfig, report: Report, progress: Progress) -> None:
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_text("weights")

    does = _does(driver, train, tmp_path)
    with monkeypatch.context() as away:
        away.setattr(Pusher, "close", _refuse)
        with pytest.raises(StorageAway, match=r"storage/run cannot be reached: ExpiredToken"):
            does(_job(driver), _on, lambda *_: None)
    with monkeypatch.context() as away:
        away.setattr(Prefix, "parts", _refuse)
        with pytest.raises(StorageAway, match="ExpiredToken; check bucket, region and credentials"):
            does(_job(driver), _on, lambda *_: None)
    assert weights.exists()
    does(_job(driver), _on, lambda *_: None)
    machine("driver").pull(["trials/0002"])
    assert (driver.local / "trials/0002/checkpoint/model.safetensors").exists()


def test_a_base_model_that_is_away_is_no_error_of_the_trial(machine: Machine, tmp_path: Path) -> None:
    driver = _driver(machine)
    url = f"file://{tmp_path}/not-mounted/model"
    does = replace(_does(driver, fake_train, tmp_path), model=url)
    machine("worker")
    with pytest.raises(StorageAway, match="not-mounted/model cannot be reached"):
        does(_job(driver), _on, lambda *_: None)


def test_a_driver_stops_in_order_when_storage_cannot_be_listed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it says how to go on; at the start the same is told as a wrong request."""

    monkeypatch.setattr(tuner.run_dir.mirror, "_PAUSE_SECONDS", 0.0)
    mirror = Mirror(_driver(machine))
    with monkeypatch.context() as away:
        away.setattr(Prefix, "parts", _refuse)
        mirror.ended("0002")
        with pytest.raises(SearchStopped, match=r"cannot be reached: .*ExpiredToken"):
            mirror.settle()
    mirror.ended("0002")
    mirror.settle()


def test_a_disk_that_a_machine_does_not_see_is_said(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"), tmp_path / "run")
    with pytest.raises(RuntimeError, match=r"must be seen by every machine .*s3://bucket/prefix"):
        _does(store, fake_train, tmp_path)(_job(store), _on, lambda *_: None)


def test_a_search_without_a_common_disk_goes_on_on_an_empty_one(machine: Machine, tmp_path: Path) -> None:
    """Driver and worker are two machines; then the driver's disk is lost."""
    config = SearchConfig(num_trials=6, finalists=1, finalist_seeds=1)
    straight = _search(config, RunStore(str(tmp_path / "whole"), tmp_path / "whole"), fake_train)

    driver = _driver(machine)
    does = _does(driver, fake_train, tmp_path)
    ended = 0

    def elsewhere(job: TrialConfig, report: Report, progress: Progress) -> None:
        nonlocal ended
        if ended == 4:
            raise KeyboardInterrupt
        machine("worker")
        does(job, report, progress)
        ended += 1

    with pytest.raises(KeyboardInterrupt):
        _search(config, driver, elsewhere)
    new = machine("new head")
    assert not (new.local / "study.db").exists()
    assert new.pull()
    (new.local / MARK).write_text("this one")
    assert _search(config, new, fake_train) == straight
    machine("yet another").pull()
    kept = {path.parent.name for path in (machine("yet another").local / "trials").glob("*/checkpoint")}
    assert kept <= {path.name for path in (new.local / "trials").iterdir()}


def test_a_finished_run_is_read_from_storage(machine: Machine) -> None:
    driver = _driver(machine)
    (driver.local / "result.json").write_text('{"verdict": "fine-tune"}')
    driver.push(["result.json"])
    machine("laptop")
    assert tuner.load(driver.url).summary == {"verdict": "fine-tune"}
    with pytest.raises(RequestError, match="holds no search"):
        tuner.load(f"{driver.url}/other")


def _search(config: SearchConfig, store: RunStore, train: object) -> list[tuple[object, ...]]:
    store.local.mkdir(parents=True, exist_ok=True)
    mirror = Mirror(store)
    mirror.begin()
    agenda = open_agenda(config, store.local, mirror=mirror)
    try:
        run_in_process(agenda, train)  # type: ignore[arg-type]
    finally:
        mirror.leave()
    search, _ = read_studies(store.local)
    return [(trial.number, trial.state.name, trial.value, sorted(trial.params.items())) for trial in search.trials]
