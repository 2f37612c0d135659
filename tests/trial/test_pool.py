"""A trial whose rungs are scored on the pool that the base model's job made."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.m3_fixtures import make_eval, make_model, make_rows, unified_arguments
from trainables.config import RungReport, TrialConfig
from trainables.m3.base_models import BaseModels
from trainables.trial.trial import run_trial


def _run(config: TrialConfig, base: BaseModels) -> list[RungReport]:
    reports: list[RungReport] = []
    run_trial(config, lambda report: not reports.append(report), base)
    return reports


def _folder(config: TrialConfig, name: str) -> TrialConfig:
    return replace(config, name=name, directory=str(Path(config.directory).with_name(name)))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    root = tmp_path_factory.mktemp("pool")
    make_model(root / "model")
    make_rows(root / "rows.jsonl")
    make_eval(root / "eval", queries=3, passages=600)
    return TrialConfig(
        name="0000",
        directory=str(root / "trials" / "0000"),
        arguments=unified_arguments(root),
        eval_data=str(root / "eval"),
        metric="0.5*dense.ndcg_at_10+0.5*sparse.ndcg_at_10",
    )


@pytest.mark.integration
def test_rungs_have_the_pool_and_finalists_the_corpus(config: TrialConfig) -> None:
    base, path = BaseModels(), Path(config.directory) / "pool.json"
    (scored,) = _run(replace(config, pool=str(path), pool_size=550), base)
    assert {name.partition(".")[0] for name in scored.scores} >= {"dense", "sparse", "colbert", "hybrid"}
    assert (scored.split, scored.pool["passages"], scored.pool["corpus"]) == ("dev", 550, 600)
    assert scored.pool["value"] == scored.value

    trial = _folder(replace(config, rungs=(0.5, 1.0), pool=str(path), pool_hash=str(scored.pool["hash"])), "0001")
    reports = _run(trial, base)
    heads = {name.partition(".")[0] for report in reports for name in report.scores if name != config.metric}
    assert heads == {"dense", "sparse"}
    folder = Path(trial.directory)
    best = max(reports, key=lambda report: report.value)
    assert json.loads((folder / "dev-pool.json").read_text())["means"] == best.scores
    assert not (folder / "dev.json").exists()

    on_corpus = replace(trial, rungs=(), pool=None, pool_hash=None, checkpoint=str(folder / "checkpoint"))
    (whole,) = _run(on_corpus, base)
    assert json.loads((folder / "dev.json").read_text())["means"] == whole.scores
    assert whole.scores.keys() == best.scores.keys()
    (without,) = _run(_folder(replace(trial, rungs=(1.0,), pool=None, pool_hash=None), "0002"), base)
    (within,) = _run(_folder(replace(trial, rungs=(1.0,)), "0003"), base)
    assert within.value >= without.value  # the same model among fewer passages


def test_a_pool_that_would_be_the_corpus_is_not_made(config: TrialConfig, tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    (scored,) = _run(_folder(replace(config, pool=str(path), pool_size=600), "0004"), BaseModels())
    assert scored.pool == {}
    assert not path.exists()


def test_another_pool_than_the_base_models_is_refused(config: TrialConfig, tmp_path: Path) -> None:
    (tmp_path / "pool.json").write_text('{"corpus": 600, "passages": ["p1"]}')
    trial = replace(config, rungs=(1.0,), pool=str(tmp_path / "pool.json"), pool_hash="0" * 64)
    with pytest.raises(ValueError, match="the pool that the base model was scored with"):
        _run(_folder(trial, "0005"), BaseModels())
