"""Score-only jobs on a trained tiny model: test scores of all heads, guards, and mixtures with the base model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from tests.support.m3_fixtures import make_eval, make_model, make_rows, unified_arguments
from trainables.config import RungReport, TrialConfig
from trainables.m3.base_models import BaseModels
from trainables.trial.trial import run_trial

METRIC = "0.5*dense.ndcg_at_10+0.5*sparse.ndcg_at_10"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    """A trial that was trained with a weighted objective and a guard at its last rung."""
    root = tmp_path_factory.mktemp("scoring")
    make_model(root / "model")
    make_rows(root / "rows.jsonl")
    make_eval(root / "eval", queries=12, passages=60)
    make_eval(root / "news", queries=4, passages=30)
    config = TrialConfig(
        name="0007",
        directory=str(root / "trials" / "0007"),
        arguments=unified_arguments(root),
        eval_data=str(root / "eval"),
        metric=METRIC,
        rungs=(0.5, 1.0),
        guards=(str(root / "news"),),
    )
    reports: list[RungReport] = []
    run_trial(config, lambda report: not reports.append(report))
    assert [set(report.guards) for report in reports] == [set(), {"news"}]  # at the last rung
    for report in reports:
        halves = [report.scores[f"{head}.ndcg_at_10"] for head in ("dense", "sparse")]
        assert report.value == report.scores[METRIC] == pytest.approx(sum(halves) / 2)
    return config


def _score(config: TrialConfig, folder: Path, **job: object) -> RungReport:
    checkpoint = str(Path(config.directory) / "checkpoint")
    kind: dict[str, Any] = {"rungs": (), "guards": (), "directory": str(folder), "checkpoint": checkpoint, **job}
    reports: list[RungReport] = []
    run_trial(replace(config, **kind), lambda report: not reports.append(report), base=BaseModels())
    (report,) = reports
    return report


def _read(path: Path) -> object:
    return json.loads(path.read_text())


def test_guards_alone(trained: TrialConfig, tmp_path: Path) -> None:
    report = _score(trained, tmp_path, split=None, guards=trained.guards)
    assert _read(tmp_path / "guard.json") == report.guards
    mteb = json.loads((tmp_path / "mteb-news.json").read_text())
    assert mteb["scores"]["test"][0]["main_score"] == pytest.approx(report.guards["news"])
    assert not (tmp_path / "dev.json").exists()


def test_the_test_split_has_a_hybrid_score_with_weights_tuned_on_dev(trained: TrialConfig, tmp_path: Path) -> None:
    report = _score(trained, tmp_path, split="test")
    heads = {name.partition(".")[0] for name in report.scores if name != METRIC}
    assert heads == {"dense", "sparse", "colbert", "hybrid", "hybrid_tuned"}
    weights = json.loads((tmp_path / "hybrid.json").read_text())
    assert weights["default"] == {"dense": 1.0, "sparse": 1.0, "colbert": 1.0}
    same = weights["tuned"] == weights["default"]
    assert not same or report.scores["hybrid_tuned.ndcg_at_10"] == report.scores["hybrid.ndcg_at_10"]


def test_mixtures_reach_from_the_base_model_to_the_trained_one(trained: TrialConfig, tmp_path: Path) -> None:
    _score(trained, tmp_path, split="dev", alphas=(0.0, 0.5, 1.0), guards=trained.guards)
    rows = json.loads((tmp_path / "mixtures.json").read_text())
    assert [row["alpha"] for row in rows] == [0.0, 0.5, 1.0]
    assert all(set(row["guard"]) == {"news"} for row in rows)
    base = _score(trained, tmp_path / "base", split="dev", checkpoint=None)
    itself = _score(trained, tmp_path / "itself", split="dev")
    assert rows[0]["dev"]["dense.ndcg_at_10"] == pytest.approx(base.scores["dense.ndcg_at_10"])
    assert rows[2]["dev"] == pytest.approx(itself.scores)


def test_a_chosen_mixture_is_saved_with_weights_halfway(trained: TrialConfig, tmp_path: Path) -> None:
    report = _score(trained, tmp_path, split="test", alpha=0.5, guards=trained.guards)
    mixed = load_file(tmp_path / "checkpoint" / "model.safetensors")
    start = load_file(Path(trained.arguments["model_name_or_path"]) / "model.safetensors")
    after = load_file(Path(trained.directory) / "checkpoint" / "model.safetensors")
    moved = [name for name in mixed if not torch.equal(start[name], after[name])]
    assert len(moved) > 10
    for name in mixed:
        torch.testing.assert_close(mixed[name], (start[name] + after[name]) / 2)
    for head in ("colbert_linear.pt", "sparse_linear.pt"):  # the base model has none: random ones are not mixed in
        own, trained_one = (
            torch.load(folder / "checkpoint" / head, weights_only=True)
            for folder in (tmp_path, Path(trained.directory))
        )
        assert torch.equal(own["weight"], trained_one["weight"])
    assert report.scores == json.loads((tmp_path / "test.json").read_text())["means"]
    assert (tmp_path / "guard.json").exists()


def test_heads_of_the_base_score_a_model_whose_dense_vectors_alone_were_trained(
    trained: TrialConfig, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(trained.arguments["model_name_or_path"], base)
    for head in ("colbert_linear.pt", "sparse_linear.pt"):
        shutil.copyfile(Path(trained.directory) / "checkpoint" / head, base / head)
    arguments = {**trained.arguments, "unified_finetuning": False, "model_name_or_path": str(base)}
    dense = replace(trained, arguments=arguments, metric="dense.ndcg_at_10")
    alone = shutil.copytree(Path(trained.directory) / "checkpoint", tmp_path / "checkpoint")
    for head in ("colbert_linear.pt", "sparse_linear.pt"):
        (alone / head).unlink()
    report = _score(dense, tmp_path / "scored", split="test", checkpoint=str(alone))
    expected = _score(trained, tmp_path / "whole", split="test")
    assert {metric: report.scores[metric] for metric in report.scores} == pytest.approx(
        {metric: value for metric, value in expected.scores.items() if metric != METRIC}
    )


def test_a_checkpoint_in_16_bits_is_scored_and_mixed(trained: TrialConfig, tmp_path: Path) -> None:
    """As DeepSpeed's fp16 engine leaves the encoder."""
    half = shutil.copytree(Path(trained.directory) / "checkpoint", tmp_path / "half")
    AutoModel.from_pretrained(half).half().save_pretrained(half)
    after = load_file(half / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    whole = _score(trained, tmp_path / "whole", split="dev")
    report = _score(trained, tmp_path / "scored", split="dev", checkpoint=str(half))
    assert report.scores == pytest.approx(whole.scores, abs=0.05)
    _score(trained, tmp_path, split="test", checkpoint=str(half), alpha=0.5)
    mixed = load_file(tmp_path / "checkpoint" / "model.safetensors")
    start = load_file(Path(trained.arguments["model_name_or_path"]) / "model.safetensors")
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, (start[name] + after[name].float()) / 2)
