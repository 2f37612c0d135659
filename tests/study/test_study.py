"""One contract for every sampler, pruner and storage: a search that is broken off goes on as an unbroken one."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.support.fake import METRIC, PARETO, fake_train, open_agenda, open_study, score_of
from tests.support.study_fixtures import BASE, USER, make_study
from trainables.config import RungReport
from tuner.cluster.executor import run_in_process
from tuner.request.config import SearchConfig
from tuner.schedule.retries import Failure
from tuner.study.pruners import pruner_names
from tuner.study.samplers import sampler_names
from tuner.study.study import read_studies
from tuner.study.trials import has_failed, how_they_ended, value_of


def _run(config: SearchConfig, run_dir: Path, *, break_after: int | None = None) -> list[tuple[object, ...]]:
    agenda = open_agenda(config, run_dir)
    ended = 0

    def train(*job: Any) -> None:
        nonlocal ended
        if ended == break_after:
            raise KeyboardInterrupt
        fake_train(*job)
        ended += 1

    try:
        run_in_process(agenda, train)
    except KeyboardInterrupt:
        return _run(config, run_dir)
    search, finalists = read_studies(run_dir, config.storage)
    return [
        (t.number, t.state.name, _value(t), sorted(t.params.items()), t.user_attrs.get("role")) for t in search.trials
    ] + [(t.user_attrs["source"], t.user_attrs["seed"], t.value) for t in finalists.trials]


def _value(trial: optuna.trial.FrozenTrial) -> object:
    return trial.values[0] if trial.values and len(trial.values) == 1 else trial.values


def _every_pair() -> list[object]:
    """Every sampler with every pruner: quick are the pairs in which one of the two is the default."""
    usual = SearchConfig()
    return [
        pytest.param(
            sampler,
            pruner,
            id=f"{pruner}-{sampler}",
            marks=[] if usual.sampler == sampler or usual.pruner == pruner else [pytest.mark.slow],
        )
        for pruner in pruner_names()
        for sampler in sampler_names()
    ]


@pytest.mark.parametrize(("sampler", "pruner"), _every_pair())
def test_a_broken_search_ends_as_an_unbroken_one(sampler: str, pruner: str, tmp_path: Path) -> None:
    config = SearchConfig(num_trials=9, sampler=sampler, pruner=pruner, finalists=2, finalist_seeds=1)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = _run(config, tmp_path / "whole")
    assert [row for row in whole if len(row) == 5][:2] == [
        (0, "COMPLETE", 0.6, [], "base"),
        whole[1],
    ]
    assert whole[1][4] == "user"
    assert _run(config, tmp_path / "broken", break_after=4) == whole


def test_the_same_search_goes_into_a_journal_file(tmp_path: Path) -> None:
    config = SearchConfig(num_trials=5, finalists=0)
    sqlite, journal = tmp_path / "a", tmp_path / "b"
    sqlite.mkdir(), journal.mkdir()
    assert _run(config.replace(storage=str(journal / "study.journal")), journal) == _run(config, sqlite)


def test_a_finished_search_is_extended(tmp_path: Path) -> None:
    short = _run(SearchConfig(num_trials=4, finalists=0), tmp_path)
    long = _run(SearchConfig(num_trials=7, finalists=0), tmp_path)
    assert long[:4] == short
    assert len(long) == 7


def test_a_trials_value_is_its_best_rungs(tmp_path: Path) -> None:
    study = open_study(SearchConfig(num_trials=4), tmp_path)
    study.ask()
    user, _ = study.ask()
    for rung, value in ((1, 0.7), (2, 0.8), (3, 0.75)):
        report = RungReport(
            rung=rung,
            fraction=rung / 3,
            step=rung,
            examples=rung,
            loss=1.0,
            value=value,
            scores={METRIC: value},
            last=rung == 3,
        )
        assert study.tell.report(user, report)
    study.tell.complete(user)
    told = study.search.trials[1]
    assert (told.value, told.user_attrs["best_rung"], told.intermediate_values) == (0.8, 2, {1: 0.7, 2: 0.8, 3: 0.75})


def test_what_was_told_an_earlier_end_counts_as_not_trained() -> None:
    sampled: list[dict[str, Any]] = [{"value": 0.7}, {"value": None}, {"value": None, "infeasible": True}]
    trials = make_study(BASE, USER, *sampled).trials
    assert how_they_ended(trials) == "2 trained to the end, 1 stopped early, 1 failed"
    repeated = [{**trial, "duplicate_of": number} for number, trial in enumerate([USER, *sampled], start=1)]
    trials = make_study(BASE, USER, *sampled, *repeated).trials
    ended = "2 trained to the end, 1 stopped early, 2 failed, 3 not trained again (settings of earlier trials)"
    assert how_they_ended(trials) == ended


def test_a_trial_that_does_not_fit_is_a_violated_constraint(tmp_path: Path) -> None:
    """The sampler learns from it, and nothing is retried identically."""
    agenda = open_agenda(SearchConfig(num_trials=2, finalists=0), tmp_path)
    base = agenda.next()
    assert base is not None
    sizes = []
    agenda.rung(base.name, _only_score())
    agenda.ended(base.name)
    while (job := agenda.next()) is not None:
        sizes.append(job.arguments.get("sub_batch_size"))
        agenda.failed(job.name, Failure(kind="out_of_memory", message="CUDA out of memory"))
    assert sizes == [None, 16, 8, 4, 2, 1]  # 8 rows x 4 passages, halved
    (trial,) = [t for t in read_studies(tmp_path)[0].trials if t.number == 1]
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.user_attrs["infeasible"] is True
    assert agenda.finished
    assert not agenda.has_winner


def test_a_trial_that_diverges_is_a_violated_constraint_and_counts_as_failed(tmp_path: Path) -> None:
    """The user's own settings and a third trial of them diverge: the second one's end is the first one's."""
    study = open_study(SearchConfig(num_trials=3), tmp_path)
    study.ask()
    user, own = study.ask()
    study.search.enqueue_trial(own)
    study.tell.infeasible(user, "non_finite", "the loss is nan")
    twin, params = study.ask()
    earlier = study.duplicate_of(twin, params)
    assert earlier is not None
    study.tell.reuse(twin, earlier)
    for trial in read_studies(tmp_path)[0].trials[1:]:
        assert trial.state == optuna.trial.TrialState.PRUNED
        assert trial.user_attrs["error_kind"] == "non_finite"
        assert trial.constraints["infeasible"] > 0
        assert has_failed(trial)


def test_a_trial_taken_up_again_keeps_its_constraint(tmp_path: Path) -> None:
    config = SearchConfig(num_trials=3)
    study = open_study(config, tmp_path)
    study.ask(), study.ask()
    again = open_study(config, tmp_path)
    again.ask()
    user, _ = again.ask()
    again.tell.infeasible(user, "out_of_memory", "CUDA out of memory")
    assert read_studies(tmp_path)[0].trials[1].constraints["infeasible"] > 0


def _only_score() -> RungReport:
    return RungReport(rung=0, fraction=0, step=0, examples=0, loss=None, value=0.6, scores={METRIC: 0.6}, last=True)


def test_the_fake_score_is_best_at_its_optimum() -> None:
    assert score_of({"learning_rate": 1e-5, "temperature": 0.02}, 1.0) == pytest.approx(0.8)


BOTH = f"{METRIC},{PARETO}"


@pytest.mark.parametrize("sampler", sampler_names())
def test_two_objectives_keep_a_front_and_prune_nothing(sampler: str, tmp_path: Path) -> None:
    config = SearchConfig(num_trials=10, metric=BOTH, sampler=sampler, finalists=1, finalist_seeds=1)
    agenda = open_agenda(config, tmp_path)
    run_in_process(agenda, fake_train)
    search, finalists = read_studies(tmp_path)
    assert search.metric_names == [METRIC, PARETO]
    assert {trial.state.name for trial in search.trials} == {"COMPLETE"}
    for trial in search.trials[1:]:
        assert value_of(trial) == pytest.approx(sum(trial.values) / 2)
        if "duplicate_of" in trial.user_attrs:
            continue
        assert trial.user_attrs["rung_4"] == pytest.approx(value_of(trial))
    front = {trial.number for trial in search.best_trials}
    assert 1 < len(front) < 10
    best = max(search.trials[1:], key=value_of)
    assert finalists.trials[0].user_attrs["source"] == best.number
    assert best.number in front  # what has the best mean is beaten by none on both
    assert agenda.has_winner


def test_a_broken_search_of_two_objectives_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    config = SearchConfig(num_trials=8, metric=BOTH, finalists=2, finalist_seeds=1)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    assert _run(config, tmp_path / "broken", break_after=4) == _run(config, tmp_path / "whole")
