"""Replays of recorded tables: what a search costs and regrets there can be counted by hand."""

from typing import Any

import numpy as np
import pytest

from benchmarks.recorded_table import FRACTIONS, RecordedTable
from benchmarks.replay.ours import replay_ours
from benchmarks.replay.peers import replay_peer
from benchmarks.replay.regret import share_to_reach
from benchmarks.replay.synthetic import synthetic_table
from benchmarks.replay.tasks import CATEGORIES, LINEAR, Exhausted, ReplayTask
from benchmarks.table_statistics import agreement
from tuner.study.strategy import Strategy


def _task(**changes: Any) -> ReplayTask:
    """Four learning rates of two queries each; the third ends best, with 0.8, and is last at the start."""
    ends = np.array([0.5, 0.6, 0.8, 0.7])
    starts = np.array([0.3, 0.4, 0.2, 0.5])
    curves = starts[:, None] + (ends - starts)[:, None] * np.linspace(0, 1, len(FRACTIONS))
    scores = np.repeat(curves[..., None], 2, axis=2).astype(np.float16)
    fields: dict[str, Any] = {
        "learning_rate": np.array([1e-5, 1e-4, 1e-3, 1e-2]),
        "temperature": np.array([0.01, 0.02, 0.04, 0.08]),
        "train_group_size": np.array([1, 2, 4, 8]),
        "per_device_train_batch_size": np.array([4, 8, 16, 32]),
        "config": np.arange(4),
        "seed": np.full(4, 42),
        "budget": np.ones(4),
        "schedule": np.array(["linear"] * 4),
        "fractions": np.array(FRACTIONS),
        "dev": scores,
        "test": scores - np.float16(0.1),
        "base_dev": np.array([0.25, 0.25]),
        "base_test": np.array([0.25, 0.25]),
        "meta": {"rows": 100, "passages": 148, "epochs": 2},
    }
    return ReplayTask(name="four", table=RecordedTable(**{**fields, **changes}))


def test_a_scoring_costs_its_texts() -> None:
    """148 passages and 2 queries, against 200 examples of 1 + 3.75 texts, each trained for three."""
    assert _task().scoring == pytest.approx(150 / (3 * 200 * 4.75))


def test_the_nearest_configuration_is_taken_once() -> None:
    task = _task()
    asked = {**task.arguments(1), "learning_rate": 2e-4}
    assert task.nearest(asked, set()) == 1
    assert task.nearest(asked, {1}) == 2
    with pytest.raises(Exhausted):
        task.nearest(asked, {0, 1, 2, 3})


@pytest.mark.parametrize("peer", ["random", "tpe_full"])
def test_full_trials_cost_a_training_and_a_scoring_each(peer: str) -> None:
    task = _task()
    trace = replay_peer(peer, task, user=0, seed=1, most=100.0)
    assert (trace.trained, trace.scored) == (4.0, 4)
    assert trace.found[0] == pytest.approx((0.0, 0.55, 0.45), abs=1e-3)
    assert trace.found[1] == pytest.approx((1 + task.scoring, 0.3, 0.3), abs=1e-3)
    assert trace.found[-1][1:] == pytest.approx((0.0, 0.0), abs=1e-3)


def test_our_search_goes_through_the_study_and_is_pruned_there() -> None:
    """A ladder of 1/16, 1/4, 1 that lets one of four on stops some of the three sampled trials early."""
    task = _task()
    strategy = Strategy(sampler="random", pruner="successive_halving", reduction_factor=4)
    trace = replay_ours(task, strategy, rungs=(1 / 16, 1 / 4, 1.0), sizes=LINEAR, user=3, seed=1, most=100.0)
    assert trace.found[1][1] == pytest.approx(0.1, abs=1e-3)  # the user's own settings, never stopped
    assert 1.0 < trace.trained < 4.0
    assert trace.scored < 12


def test_a_configuration_that_diverged_ends_its_trial() -> None:
    task = _task()
    dev = task.table.dev.copy()
    dev[2, 3:] = np.nan
    task = _task(dev=dev)
    trace = replay_ours(
        task,
        Strategy(pruner="none", prior=False),
        rungs=(1 / 4, 1 / 2, 1.0),
        sizes=CATEGORIES,
        user=0,
        seed=0,
        most=100.0,
    )
    assert (trace.trained, trace.scored) == (3.5, 11)
    assert trace.found[-1][1] == pytest.approx(0.0, abs=1e-3)  # of what is left, 0.7 is the best


def test_regret_over_compute_is_a_step_function() -> None:
    trace = replay_peer("random", _task(), user=0, seed=1, most=1.0)
    dev, _ = trace.regret_at(np.array([0.5, 1.5]))
    assert dev == pytest.approx([0.55, 0.3], abs=1e-3)
    assert share_to_reach(np.linspace(1, 0, 97), 2.0) == pytest.approx(1 / 64)
    assert share_to_reach(np.ones(97), 0.5) is None


def test_a_rung_that_ranks_as_the_end_agrees_with_it() -> None:
    end = np.arange(8.0)
    assert agreement(end * 0.1, end)["tau"] == pytest.approx(1.0)
    found = agreement(-end, end)
    assert [found["tau"], found["rank_of_best"], found["best_end_of_top_quarter"]] == pytest.approx([-1.0, 8, 1.0])


def test_made_up_tables_have_the_recorded_format(tmp_path: Any) -> None:
    table = synthetic_table(0, configs=8, dev=20, test=20)
    table.save(tmp_path / "synthetic.npz")
    task = ReplayTask(name="synthetic", table=RecordedTable.load(tmp_path / "synthetic.npz"))
    assert task.dev.shape == (8, 5)
    assert not np.isnan(task.dev).any()


def test_a_whole_search_ends_with_its_trials() -> None:
    """Of three trials one is the base model, which costs nothing, and one the user's own settings."""
    task = _task()
    plain = Strategy(sampler="random", pruner="none", prior=False)
    trace = replay_ours(task, plain, rungs=(1 / 2, 1.0), sizes=LINEAR, user=3, seed=1, trials=3)
    assert (trace.trained, trace.scored) == (2.0, 4)
