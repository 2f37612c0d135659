"""A space that varies pooling and learning rate: the gain that is said is that of training alone, as mteb has it."""

import json
from pathlib import Path
from typing import Any

import mteb
import optuna
import pytest
from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer  # type: ignore[import-not-found]

from search_spaces import Context
from tests.support.m3_fixtures import make_eval, make_model, make_rows
from trainables.config import Progress, Report, TrialConfig
from trainables.m3.base_models import BaseModels
from trainables.scoring.mteb_judge import HeldOutTask
from trainables.trial.trial import run_trial
from tuner.cluster.executor import run_in_process
from tuner.planning.plan import make_plan
from tuner.request.arguments import honoured
from tuner.request.asked import write_config
from tuner.request.config import SearchConfig
from tuner.schedule.agenda import Agenda
from tuner.schedule.jobs import TrialConfigs
from tuner.search.conclusion import conclude
from tuner.study.storage import open_storage
from tuner.study.study import SearchStudy

METRIC = "dense.ndcg_at_10"
MEAN = {"sentence_pooling_method": "mean"}


def both(trial: optuna.Trial, context: Context) -> dict[str, Any]:  # noqa: ARG001
    """Mean pooling in every trial but the user's, and a learning rate."""
    pooling = trial.suggest_categorical("sentence_pooling_method", ["mean", "cls"])
    rate = trial.suggest_float("learning_rate", 1e-3, 1e-2, log=True)
    return {"sentence_pooling_method": pooling, "learning_rate": rate}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_gain_is_that_of_training_alone(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    arguments = {
        "model_name_or_path": str(model),
        "train_data": [str(make_rows(tmp_path / "rows.jsonl", rows=400))],
        "query_max_len": 16,
        "passage_max_len": 32,
        "per_device_train_batch_size": 8,
        "train_group_size": 4,
        "num_train_epochs": 2.0,
        "learning_rate": 1e-9,
        "temperature": 0.1,
    }
    config = SearchConfig(arguments=arguments, eval_data=str(make_eval(tmp_path / "eval", queries=60, passages=200)))
    config = config.replace(search_space=f"{__name__}:both", num_trials=6, finalists=0, rungs=(1.0,), gpus_per_trial=0)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    said = _search(config, run_dir)
    result = json.loads((run_dir / "result.json").read_text())
    best = SentenceTransformer(str(run_dir / "best"), device="cpu")
    pooled = Pooling(16, pooling_mode="mean")
    base = SentenceTransformer(modules=[Transformer(str(model), max_seq_length=32), pooled, Normalize()], device="cpu")
    assert result["best"]["params"] | MEAN == result["best"]["params"]
    assert result["verdict"] == "fine-tune"
    scores = [_judged(each, run_dir) for each in (base, best)]
    assert result["base"]["encoded_as_best"]["test"] == pytest.approx(scores[0], abs=1e-6)
    assert result["best"]["gain"] == pytest.approx(scores[1] - scores[0], abs=1e-6)
    assert result["best"]["gain"] != pytest.approx(result["versus_base"]["gain"], abs=1e-6)
    assert "The base model with the winner's settings: " in said


def _search(config: SearchConfig, run_dir: Path) -> str:
    """Runs a search in this process; returns what it says in the end."""
    plan = make_plan(config, run_dir, lambda _line: None)
    write_config(plan.config, plan.run_dir, [])
    study = SearchStudy(
        open_storage(None, run_dir),
        config,
        space=plan.space,
        context=plan.context,
    )
    asked = honoured(plan.arguments, gpu=False)[0]
    agenda = Agenda(
        study,
        TrialConfigs(search=config, run_dir=run_dir, arguments=asked, eval_data=plan.dataset.eval_data),
    )
    base = BaseModels()

    def train(job: TrialConfig, report: Report, progress: Progress) -> None:
        run_trial(job, report, base=base, progress=progress)

    run_in_process(agenda, train)
    assert agenda.failures == []
    console = Console(record=True, width=200)
    conclude(config, run_dir, console, seconds=1.0)
    return console.export_text()


def _judged(model: SentenceTransformer, run_dir: Path) -> float:
    task = HeldOutTask(run_dir / "data" / "eval", "test", "HeldOut", ["eng-Latn"])
    task.load_data()
    mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False)
    assert task.scores is not None
    return task.scores.means[METRIC]
