"""From a request to result.json, bundle and report in this process: everything but Ray, on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.support.m3_fixtures import make_eval, make_model, make_rows
from trainables.config import Progress, Report, TrialConfig
from trainables.m3.base_models import BaseModels
from trainables.trial.trial import run_trial
from tuner.cluster.executor import run_in_process
from tuner.export.bundle import write_bundle
from tuner.planning.plan import make_plan
from tuner.request.arguments import honoured
from tuner.request.asked import write_config
from tuner.request.config import SearchConfig
from tuner.schedule.agenda import Agenda
from tuner.schedule.jobs import TrialConfigs
from tuner.search.conclusion import conclude
from tuner.study.storage import open_storage
from tuner.study.study import SearchStudy, read_studies

METRIC = "dense.ndcg_at_10,0.5*sparse.ndcg_at_10+0.5*colbert.ndcg_at_10"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_objectives_with_a_guard_as_constraint(tmp_path: Path) -> None:
    arguments = {
        "model_name_or_path": str(make_model(tmp_path / "model")),
        "train_data": [str(make_rows(tmp_path / "rows.jsonl", rows=120))],
        "unified_finetuning": True,
        "query_max_len": 16,
        "passage_max_len": 16,
        "per_device_train_batch_size": 8,
        "train_group_size": 2,
        "num_train_epochs": 0.5,
    }
    guard = (str(make_eval(tmp_path / "news")),)
    config = SearchConfig(arguments=arguments, metric=METRIC, guard=guard, guard_tolerance=0.5, guard_constraint=True)
    config = config.replace(num_trials=4, finalists=1, finalist_seeds=1, gpus_per_trial=0)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    plan = make_plan(config, run_dir, lambda _line: None)
    write_config(plan.config, plan.run_dir, ["--metric", METRIC])
    study = SearchStudy(
        open_storage(None, run_dir),
        config,
        space=plan.space,
        context=plan.context,
    )
    held: dict[str, Any] = {
        "run_dir": run_dir,
        "arguments": honoured(plan.arguments, gpu=False)[0],
        "eval_data": plan.dataset.eval_data,
    }
    agenda, base = Agenda(study, TrialConfigs(search=config.replace(guard=plan.guards), **held)), BaseModels()

    def train(job: TrialConfig, report: Report, progress: Progress) -> None:
        run_trial(job, report, base=base, progress=progress)

    run_in_process(agenda, train)
    assert agenda.failures == []
    console = Console(record=True, width=200)
    conclude(config, run_dir, console, seconds=1.0)

    result = json.loads((run_dir / "result.json").read_text())
    assert all(set(row["values"]) == set(METRIC.split(",")) for row in result["front"])
    assert set(result["guard"]["tasks"]) == {"news"}
    assert [row["alpha"] for row in result["mixtures"]["rows"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert set(result["hybrid_weights"]) >= {"default", "base", "best"}
    assert "hybrid_tuned.ndcg_at_10" in result["gains"]
    assert METRIC in result["gains"]
    assert "news, base model and best" in console.export_text()
    page = (run_dir / "report.html").read_text()
    assert 'id="front"' in page
    assert '<section id="guard">' in page
    card = (run_dir / "best" / "README.md").read_text()
    assert "objective `" in card
    assert ("## Elsewhere" in card) == (result["verdict"] == "fine-tune")  # else it is the base model's
    trained_one = write_bundle(run_dir, tmp_path / "trained", trial=result["best"]["trial"], verify=False)
    assert "## Elsewhere" in (trained_one / "README.md").read_text()
    trained = [trial for trial in read_studies(run_dir)[0].trials[1:] if "duplicate_of" not in trial.user_attrs]
    assert all("guard_excess" in trial.user_attrs for trial in trained)
