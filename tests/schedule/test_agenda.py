import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from search_spaces import Context
from tests.support.fake import fake_rungs, fake_train, open_agenda, open_study
from trainables.config import Progress, Report, Train, TrialConfig
from trainables.failures import StorageAway
from tuner.cluster.executor import run_in_process
from tuner.errors import AllTrialsFailedError
from tuner.interrupts import SearchStopped
from tuner.request.config import SearchConfig
from tuner.run_dir.names import weights_of
from tuner.schedule.agenda import Agenda
from tuner.schedule.retries import Failure
from tuner.search.conclusion import without_winner
from tuner.study.study import read_studies
from tuner.study.telling import Telling
from tuner.verdict import selection


def _run(config: SearchConfig, run_dir: Path) -> Agenda:
    agenda = open_agenda(config, run_dir)
    run_in_process(agenda, fake_train)
    return agenda


def _run_again_and_again(agenda: Agenda, train: Train) -> None:
    """As Tune asks."""
    while not agenda.finished:
        run_in_process(agenda, train)


def test_base_then_user_then_samples_then_finalists_then_test(tmp_path: Path) -> None:
    agenda = _run(SearchConfig(num_trials=6, finalists=2, finalist_seeds=2, pruner="none"), tmp_path)
    roles = [row.role for row in agenda.rows]
    assert roles[:2] == ["base", "user"]
    assert roles[2:6] == ["sampled"] * 4
    assert roles[6:10] == ["finalist"] * 4
    assert set(roles[10:]) == {"test"}
    assert agenda.finished


def derived(trial: optuna.Trial, context: Context) -> dict[str, Any]:
    """Of the batch follows the temperature; the user's own is another."""
    batch = trial.suggest_categorical("per_device_train_batch_size", context.batch_sizes([4, 16]))
    return {"per_device_train_batch_size": batch, "temperature": 0.4 / batch}


def test_what_a_space_derives_is_trained_retrained_and_tested(tmp_path: Path) -> None:
    """Trial 1 has the user's own of both: batch 8 and temperature 0.02, where the space would have 0.05."""
    config = SearchConfig(num_trials=5, finalists=2, finalist_seeds=1, search_space=f"{__name__}:derived")
    trained: dict[str, tuple[int, float]] = {}

    def train(config: TrialConfig, report: Report, progress: Progress) -> None:
        batch, temperature = (config.arguments[name] for name in ("per_device_train_batch_size", "temperature"))
        assert trained.setdefault(config.name, (batch, temperature)) == (batch, temperature)
        fake_train(config, report, progress)

    run_in_process(open_agenda(config, tmp_path), train)
    assert trained["0001"] == (8, 0.02)
    assert {trained[f"{number:04d}"] for number in (2, 3, 4) if f"{number:04d}" in trained} <= {
        (4, 0.1), (8, 0.05), (16, 0.025)
    }  # fmt: skip
    retrained = [name for name in trained if "seed" in name]
    assert len(retrained) == 2
    assert all(trained[name] == trained[name[:4]] for name in retrained)


def test_a_trial_s_record_says_how_many_workers_train_it(tmp_path: Path) -> None:
    _run(SearchConfig(num_trials=2, finalists=0, gpus_per_trial=3), tmp_path)
    assert json.loads((tmp_path / "trials" / "0001" / "config.json").read_text())["workers"] == 3


def test_pruned_trials_are_pruned_in_the_study(tmp_path: Path) -> None:
    _run(SearchConfig(num_trials=12, finalists=0), tmp_path)
    search, _ = read_studies(tmp_path)
    states = [trial.state.name for trial in search.trials]
    assert states[:2] == ["COMPLETE", "COMPLETE"]
    assert "PRUNED" in states
    assert all(len(trial.intermediate_values) == 4 for trial in search.trials[1:] if trial.state.name == "COMPLETE")


def test_a_trial_that_is_stopped_is_at_no_time_shown_as_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agenda = open_agenda(SearchConfig(num_trials=12, finalists=0), tmp_path)
    seen, stopped = list[str](), Telling.stopped

    def watched(telling: Telling, trial: optuna.Trial) -> bool:
        seen.append(next(row.state for row in reversed(agenda.rows) if row.name == f"{trial.number:04d}"))
        return stopped(telling, trial)

    monkeypatch.setattr(Telling, "stopped", watched)
    run_in_process(agenda, fake_train)
    assert set(seen) == {"running"}


def test_weights_stay_for_the_best_and_the_users_own_only(tmp_path: Path) -> None:
    _run(SearchConfig(num_trials=12, finalists=2, finalist_seeds=1, keep_checkpoints=2), tmp_path)
    kept = {folder.parent.name for folder in (tmp_path / "trials").glob("*/checkpoint")}
    search, _ = read_studies(tmp_path)
    complete = [t for t in search.trials if t.state.name == "COMPLETE" and t.number > 0]
    best = sorted(complete, key=lambda trial: trial.value or 0.0, reverse=True)[:2]
    assert kept == {"0001", *(f"{trial.number:04d}" for trial in best)}


def test_states_of_a_trial_stay_until_the_study_was_told_of_its_end(tmp_path: Path) -> None:
    """Of complete and pruned trials, and of the last one, which fails twice."""
    found = list[str]()

    def leaves_its_state(config: TrialConfig, report: Report, progress: Progress) -> None:
        state = Path(config.directory) / "resume" / "000000050"
        found.extend([config.name] if state.exists() else [])
        if config.rungs:
            state.mkdir(parents=True, exist_ok=True)
        if config.name == "0011":
            raise RuntimeError("boom")
        fake_train(config, report, progress)

    agenda = open_agenda(SearchConfig(num_trials=12, finalists=0, pruner="successive_halving"), tmp_path)
    run_in_process(agenda, leaves_its_state)
    assert {row.state for row in agenda.rows} == {"complete", "pruned", "retried", "failed"}
    assert found == ["0011"]
    assert list((tmp_path / "trials").glob("*/resume")) == []


def test_one_failed_trial_does_not_end_the_search(tmp_path: Path) -> None:
    def fails_once(config: TrialConfig, report: Report, progress: Progress) -> None:
        if config.name == "0002":
            raise RuntimeError("boom")
        fake_train(config, report, progress)

    agenda = open_agenda(SearchConfig(num_trials=5, finalists=0), tmp_path)
    run_in_process(agenda, fails_once)
    assert [row.state for row in agenda.rows if row.name == "0002"] == ["retried", "failed"]
    search, _ = read_studies(tmp_path)
    assert search.trials[2].state.name == "FAIL"
    assert search.trials[2].user_attrs["error"] == "RuntimeError: boom"
    assert len(search.trials) == 5
    assert agenda.has_winner
    assert "boom" in (tmp_path / "trials" / "0002" / "log.txt").read_text()


def test_without_a_scored_base_model_nothing_more_is_trained(tmp_path: Path) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such model")

    agenda = open_agenda(SearchConfig(num_trials=5), tmp_path)
    run_in_process(agenda, fails)
    assert [(row.role, row.state) for row in agenda.rows] == [("base", "retried"), ("base", "failed")]
    assert not agenda.has_winner


def test_trials_that_wait_when_the_base_model_is_given_up_fail(tmp_path: Path) -> None:
    """Two slots: the user's own settings wait for their retry while the base model fails for the second time."""
    agenda, failure = open_agenda(SearchConfig(num_trials=5), tmp_path), Failure(kind="error", message="no such model")
    base, user = agenda.next(), agenda.next()
    assert base is not None
    assert user is not None
    agenda.failed(base.name, failure)
    assert agenda.next() == base
    agenda.failed(user.name, Failure(kind="worker_lost", message="killed"))
    agenda.failed(base.name, failure)
    assert agenda.next() is None
    assert agenda.finished
    trials = read_studies(tmp_path)[0].trials
    assert [trial.state.name for trial in trials] == ["RUNNING", "FAIL"]
    assert trials[0].user_attrs["error"] == "no such model"
    assert "the base model could not be scored" in trials[1].user_attrs["error"]


def test_a_resume_begins_with_the_base_model_that_could_not_be_scored(tmp_path: Path) -> None:
    config = SearchConfig(num_trials=3, finalists=0)
    agenda = open_agenda(config, tmp_path)
    for _ in range(2):
        base = agenda.next()
        assert base is not None
        agenda.failed(base.name, Failure(kind="error", message="no such model"))
    assert agenda.next() is None
    assert agenda.finished

    resumed = open_agenda(config, tmp_path)
    run_in_process(resumed, fake_train)
    assert resumed.has_winner
    assert [trial.state.name for trial in read_studies(tmp_path)[0].trials] == ["COMPLETE"] * 3


def test_storage_that_is_away_fails_no_trial(tmp_path: Path) -> None:
    now, attempts = 0.0, 0

    def away_for_a_while(config: TrialConfig, report: Report, progress: Progress) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 20:
            raise StorageAway("s3://bucket/run cannot be reached: ExpiredToken")
        fake_train(config, report, progress)

    agenda, notes = open_agenda(SearchConfig(num_trials=3, finalists=0), tmp_path, clock=lambda: now), list[str]()
    while not agenda.finished:  # as Tune asks again and again
        run_in_process(agenda, away_for_a_while)
        notes.append(agenda.note)
        now += 31
    assert [row.state for row in agenda.rows if row.role == "base"] == ["retried"] * 19 + ["complete"]
    assert "ExpiredToken; the search goes on by itself when it can be reached" in notes[0]
    assert agenda.has_winner


def test_storage_that_stays_away_stops_the_search(tmp_path: Path) -> None:
    now = 0.0

    def away(*_: object) -> None:
        raise StorageAway("s3://bucket/run cannot be reached: ExpiredToken")

    def clock() -> float:
        nonlocal now
        now += 0.25
        return now

    agenda = open_agenda(SearchConfig(num_trials=3, finalists=0), tmp_path, clock=clock)
    with pytest.raises(SearchStopped, match="ExpiredToken"):
        _run_again_and_again(agenda, away)
    assert now > 1800
    assert read_studies(tmp_path)[0].trials[0].state.name == "RUNNING"


@pytest.mark.parametrize(("name", "decides"), [("0000", True), ("0001", False), ("0003", True)])
def test_without_the_test_scores_of_base_model_and_winner_the_search_stops(
    name: str, decides: bool, tmp_path: Path
) -> None:
    """Trial 3 wins; what the user's own settings score is only shown beside it."""

    def fails_on_test(config: TrialConfig, report: Report, progress: Progress) -> None:
        if config.name == name and config.split == "test":
            raise RuntimeError("boom")
        better = replace(
            config, arguments={**config.arguments, "learning_rate": 1e-5 if config.name == "0003" else 1e-6}
        )
        fake_train(better, report, progress)

    config = SearchConfig(num_trials=4, finalists=0, pruner="none")
    if decides:
        model = "the base model" if name == "0000" else f"trial {name}"
        with pytest.raises(SearchStopped, match=f"{model} could not be scored on test: RuntimeError: boom"):
            run_in_process(open_agenda(config, tmp_path), fails_on_test)
    resumed = open_agenda(config, tmp_path)
    run_in_process(resumed, fake_train if decides else fails_on_test)
    assert resumed.finished


def test_a_job_that_is_tried_again_starts_when_it_is_handed_out(tmp_path: Path) -> None:
    """Storage is away for 30 s: they are no part of the second attempt."""
    now = 0.0
    agenda = open_agenda(SearchConfig(num_trials=2, finalists=0), tmp_path, clock=lambda: now)
    base = agenda.next()
    assert base is not None
    now = 10.0
    agenda.failed(base.name, Failure(kind="storage", message="s3://bucket cannot be reached"))
    assert agenda.next() is None
    now = 50.0
    assert agenda.next() == base
    now = 60.0
    agenda.progress(base.name, 3, 100)
    agenda.progress(base.name, 9, 100)
    assert [row.started for row in agenda.rows] == [0.0, 50.0]
    assert [row.first_step for row in agenda.rows] == [None, (60.0, 3)]


def test_a_quota_that_lets_rungs_through_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """The scores fit, and the training state does not: a rung that is reported again is no sign of room."""
    now = 0.0
    agenda = open_agenda(SearchConfig(num_trials=2, finalists=0), tmp_path, clock=lambda: now)

    def train(config: TrialConfig, report: Report, progress: Progress) -> None:
        if not config.rungs:
            return fake_train(config, report, progress)
        report(next(fake_rungs(config)))
        raise OSError("[Errno 122] Disk quota exceeded")

    def wait() -> None:
        nonlocal now
        while now < 4000:
            run_in_process(agenda, train)
            now += 10

    with pytest.raises(SearchStopped, match="no room on the disk"):
        wait()
    assert now > 1800


def test_finalists_whose_weights_are_gone_are_told(tmp_path: Path) -> None:
    """Of five trials, the weights of the best and of the user's own are there when three finalists are asked for."""
    config = SearchConfig(num_trials=5, finalists=1, finalist_seeds=0, keep_checkpoints=1, sampler="random")
    assert _run(config, tmp_path).passed_over == ""
    extended = _run(config.replace(finalists=3), tmp_path)
    best = selection.finalists(read_studies(tmp_path)[0], 3)
    gone = [number for number in best if not weights_of(tmp_path, number).is_dir()]
    assert gone
    assert f"the weights of {', '.join(map(str, gone))} were not kept" in extended.passed_over


def test_causes_are_known_after_a_resume(tmp_path: Path) -> None:
    def fails(config: TrialConfig, report: Report, progress: Progress) -> None:
        if config.rungs:
            raise RuntimeError("no such file")
        fake_train(config, report, progress)

    config = SearchConfig(num_trials=3)
    run_in_process(open_agenda(config, tmp_path), fails)
    resumed = open_agenda(config, tmp_path)
    run_in_process(resumed, fake_train)
    assert resumed.rows == []
    failed = without_winner(resumed)
    assert isinstance(failed, AllTrialsFailedError)
    assert str(failed) == "every trial failed (2):\n  2 x RuntimeError: no such file"


NO_PLACE = Failure(kind="no_resources", message="a group needs 2 GPU, but free is 0 GPU")


def _two_jobs(run_dir: Path) -> tuple[Agenda, TrialConfig, TrialConfig]:
    now = iter(range(10_000))
    agenda = open_agenda(SearchConfig(num_trials=3, finalists=0, concurrent_trials=2), run_dir, lambda: next(now))
    first, second = agenda.next(), agenda.next()
    assert first is not None
    assert second is not None
    return agenda, first, second


def test_a_place_that_an_idle_group_held_is_waited_for(tmp_path: Path) -> None:
    """Tune keeps one slot warm while there is no job for it."""
    agenda, first, second = _two_jobs(tmp_path)
    for rung in fake_rungs(first):
        agenda.rung(first.name, rung)
    agenda.ended(first.name)
    agenda.failed(second.name, NO_PLACE)
    again = agenda.next()
    assert again is not None
    assert again.name == second.name
    agenda.failed(again.name, NO_PLACE)  # and no other job was there in the meantime
    with pytest.raises(SearchStopped, match="free is 0 GPU"):
        agenda.next()


def test_slots_that_all_wait_for_a_place_do_not_wait_for_each_other(tmp_path: Path) -> None:
    agenda, first, second = _two_jobs(tmp_path)
    agenda.progress(second.name, 0, 0, note="waiting for a worker group")
    agenda.failed(first.name, NO_PLACE)
    with pytest.raises(SearchStopped, match="free is 0 GPU"):
        agenda.next()


def test_a_retraining_of_what_is_no_finalist_any_more_is_given_up(tmp_path: Path) -> None:
    """The driver was killed in the retraining of a trial that is not among the best now."""
    config = SearchConfig(num_trials=3, finalists=1, finalist_seeds=1, pruner="none")
    study = open_study(config, tmp_path)
    assert study.retrainings.open(99, 43) is not None
    state = tmp_path / "trials" / "0099-seed43" / "resume"
    state.mkdir(parents=True)
    run_in_process(open_agenda(config, tmp_path), fake_train)
    _, finalists = read_studies(tmp_path)
    assert [trial.state.name for trial in finalists.trials] == ["FAIL", "COMPLETE"]
    assert finalists.trials[0].user_attrs["error"] == "no finalist any more"
    assert not state.exists()


def encoding(trial: optuna.Trial, context: Context) -> dict[str, Any]:  # noqa: ARG001
    """Pooling, which is no training, beside a learning rate and a temperature."""
    rate = trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True)
    return {"learning_rate": rate, "sentence_pooling_method": "mean" if trial.number > 1 else "cls"}


def test_the_base_model_is_scored_as_the_finalists_encode(tmp_path: Path) -> None:
    jobs: list[TrialConfig] = []

    def train(job: TrialConfig, report: Report, progress: Progress) -> None:
        jobs.append(job)
        fake_train(job, report, progress)

    config = SearchConfig(num_trials=5, finalists=2, finalist_seeds=1, search_space=f"{__name__}:encoding")
    config = config.replace(guard=("news",), pruner="none")
    agenda = open_agenda(config, tmp_path)
    run_in_process(agenda, train)
    bases = [job for job in jobs if job.name.startswith("0000-as-")]
    assert len({job.name for job in bases}) == 1  # the trials of mean pooling encode alike
    assert [(job.split, job.guards) for job in bases] == [("dev", ()), (None, ("news",)), ("test", ())]
    assert {job.arguments["sentence_pooling_method"] for job in bases} == {"mean"}
    assert {job.checkpoint for job in bases} == {None}
    assert [row.role for row in agenda.rows if row.name == bases[0].name] == ["encoding", "guards", "test"]
    again = open_agenda(config, tmp_path)
    run_in_process(again, fake_train)
    assert again.rows == []
