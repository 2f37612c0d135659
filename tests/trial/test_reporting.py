"""Curves of real trials in tensorboard and mlflow, each trial a run of its own."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.m3_fixtures import make_inputs
from trainables.config import TrialConfig
from trainables.files import files_in
from trainables.m3.base_models import BaseModels
from trainables.trial.trial import run_trial
from tuner.errors import RequestError
from tuner.planning.plan import make_plan
from tuner.request.config import SearchConfig
from tuner.run_dir.written import written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reporting")
    return make_inputs(root)


def _train(folder: Path, run_dir: Path, report_to: str, names: tuple[str, ...]) -> Mapping[str, float]:
    """Trains two trials in one process; returns the scores of the last."""
    base, scores = BaseModels(), list[Mapping[str, float]]([{}])
    for name in names:
        config = TrialConfig(
            name=name,
            directory=str(run_dir / "trials" / name),
            arguments={
                "model_name_or_path": str(folder / "model"),
                "train_data": [str(folder / "rows.jsonl")],
                "cache_path": str(folder / "cache"),
                "per_device_train_batch_size": 4,
                "train_group_size": 2,
                "num_train_epochs": 1,
                "logging_steps": 2,
                "report_to": report_to,
                "seed": 42,
            },
            eval_data=str(folder / "eval"),
            metric="dense.ndcg_at_10",
            rungs=(0.5, 1.0),
        )
        run_trial(config, lambda report: not scores.append(dict(report.scores)), base=base)
    return scores[-1]


def test_tensorboard_shows_each_trial_by_its_name(folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    last = _train(folder, tmp_path, "tensorboard", ("0001", "0002"))
    shown = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "tensorboard")).Reload()
    assert set(shown.Runs()) == {"0001", "0002"}
    for run in shown.Runs():
        assert [event.step for event in shown.Scalars(run, "train/loss")] == [2, 4, 6, 8, 10]
        assert [event.step for event in shown.Scalars(run, "eval/dense.ndcg_at_10")] == [5, 10]
    assert {f"tensorboard/{name}" for name in files_in(tmp_path / "tensorboard")} <= set(written(tmp_path))
    final = shown.Scalars("0002", "eval/dense.ndcg_at_10")[-1].value
    assert final == pytest.approx(last["dense.ndcg_at_10"], abs=1e-6)


def test_mlflow_keeps_the_runs_beside_the_search(folder: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run_dir = tmp_path / "nightly"
    _train(folder, run_dir, "mlflow", ("0001", "0002"))
    client = MlflowClient(f"sqlite:///{run_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("nightly")
    assert experiment is not None
    assert "mlflow.db" in written(run_dir)  # so that it goes with the search where another takes its place
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"0001", "0002"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        curve = client.get_metric_history(run.info.run_id, "eval_dense.ndcg_at_10")
        assert [point.step for point in curve] == [5, 10]


def test_a_tracker_that_is_not_installed_is_told_before_anything_starts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.planning.plan._TRACKERS", {"wandb": ("no_such_package",)})
    arguments = {"train_data": [str(folder / "rows.jsonl")], "report_to": "wandb"}
    with pytest.raises(RequestError, match="--report_to wandb: its package is not installed; pip install wandb"):
        make_plan(SearchConfig(arguments=arguments), tmp_path, print)
