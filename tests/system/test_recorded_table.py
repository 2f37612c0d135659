"""The table of recorded runs: what is written is read, and arrays that do not fit together are refused."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.recorded_table import FRACTIONS, RecordedTable


@pytest.fixture
def table() -> RecordedTable:
    """Two configurations, three runs; the last is a short one that was scored at 1/16 only."""
    dev = np.zeros((3, 5, 2), np.float16)
    dev[0, 4] = [1.0, 0.5]
    dev[2, 1:] = np.nan
    return RecordedTable(
        learning_rate=np.array([1e-5, 1e-3]),
        temperature=np.array([0.02, 0.1]),
        train_group_size=np.array([1, 8]),
        per_device_train_batch_size=np.array([4, 64]),
        config=np.array([0, 1, 0]),
        seed=np.array([42, 42, 42]),
        budget=np.array([1, 1, 1 / 16]),
        schedule=np.array(["linear", "constant_with_warmup", "linear"]),
        fractions=np.array(FRACTIONS),
        dev=dev,
        test=np.zeros((3, 5, 3), np.float16),
        base_dev=np.zeros(2, np.float16),
        base_test=np.zeros(3, np.float16),
        meta={"rows": 600, "model": "MiniLM"},
    )


def test_it_reads_what_it_wrote(table: RecordedTable, tmp_path: Path) -> None:
    table.save(tmp_path / "task.npz")
    again = RecordedTable.load(tmp_path / "task.npz")
    for each in fields(RecordedTable):
        np.testing.assert_equal(getattr(again, each.name), getattr(table, each.name))
    assert [path.name for path in tmp_path.iterdir()] == ["task.npz"]


def test_runs_are_found_by_their_kind(table: RecordedTable) -> None:
    assert table.rows().tolist() == [0]
    assert table.rows(budget=1 / 16).tolist() == [2]
    assert table.rows(schedule="constant_with_warmup").tolist() == [1]
    assert table.rows(seed=43).tolist() == []
    assert table.arguments(1) == {
        "learning_rate": 1e-3,
        "temperature": 0.1,
        "train_group_size": 8,
        "per_device_train_batch_size": 64,
    }


def test_means_are_over_queries_and_nan_where_nothing_was_scored(table: RecordedTable) -> None:
    means = table.means("dev")
    assert means[0].tolist() == [0, 0, 0, 0, 0.75]
    assert means[2, 0] == 0
    assert np.isnan(means[2, 1:]).all()


def test_arrays_that_do_not_fit_together_are_refused(table: RecordedTable) -> None:
    with pytest.raises(ValueError, match="dev must have the shape"):
        replace(table, base_dev=np.zeros(3))
    with pytest.raises(ValueError, match="one of the table's configurations"):
        replace(table, config=np.array([0, 2, 0]))
