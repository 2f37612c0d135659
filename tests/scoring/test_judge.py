import json
import random
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mteb.results import TaskResult
from transformers import AutoModel, AutoTokenizer

from tests.support.m3_fixtures import make_eval, make_model
from trainables.scoring import mteb_judge
from trainables.scoring.mteb_judge import GuardUnavailable, guard_score, guard_task, judge
from trainables.scoring.scorer import EncodingSettings, Scorer

SETTINGS = EncodingSettings(
    query_max_len=8,
    passage_max_len=16,
    query_instruction_for_retrieval="w7",
    query_instruction_format="{} {}",
    sentence_pooling_method="mean",
)


@pytest.fixture(scope="module")
def eval_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_eval(tmp_path_factory.mktemp("judge") / "eval", queries=12, passages=150)
    with (folder / "qrels" / "dev.tsv").open("a") as file:
        file.writelines(f"q{number}\tp{number + 20}\t{number % 3}\n" for number in range(12))
    return folder


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = make_model(tmp_path_factory.mktemp("judge") / "model")
    model = SimpleNamespace(model=AutoModel.from_pretrained(folder), colbert_linear=None, sparse_linear=None)
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("normalized", [True, False])
def test_the_scorer_equals_mteb(embedder: tuple[Any, Any], eval_data: Path, tmp_path: Path, normalized: bool) -> None:
    settings = replace(SETTINGS, normalize_embeddings=normalized)
    model, tokenizer = embedder
    judged = judge(model, tokenizer, settings, eval_data, "dev", result=tmp_path / "mteb.json")
    scores = Scorer(eval_data, tokenizer, settings).score(model, "dev")
    assert scores.retrieved == judged.retrieved
    reported = json.loads((tmp_path / "mteb.json").read_text())["scores"]["dev"][0]
    for metric, values in scores.per_query.items():
        assert values == pytest.approx(judged.per_query[metric], abs=1e-6)
        measure = metric.removeprefix("dense.")
        digits = 6 if measure == "mrr_at_10" else 5  # mteb rounds the others to five
        assert round(scores.means[metric], digits) == pytest.approx(reported[measure], abs=1e-6)
    assert 0 < scores.means["dense.ndcg_at_10"] < 1


def test_the_result_is_mtebs_own(embedder: tuple[Any, Any], eval_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "mteb.json"
    scores = judge(*embedder, SETTINGS, eval_data, "test", languages=["zho-Hans"], result=path)
    result = TaskResult.from_disk(path)
    assert result.task_name == "HeldOut"
    assert result.scores["test"][0]["languages"] == ["zho-Hans"]
    assert result.get_score() == pytest.approx(scores.means["dense.ndcg_at_10"], abs=1e-5)
    assert str(eval_data) not in path.read_text()


def test_of_several_workers_the_first_writes_and_all_at_once(
    embedder: tuple[Any, Any], eval_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: TaskResult, path: Path) -> None:
        path.write_text("{")
        raise OSError("the disk is full")

    path = tmp_path / "mteb.json"
    monkeypatch.setattr(mteb_judge, "rank", lambda: 1)
    judge(*embedder, SETTINGS, eval_data, "dev", result=path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    judge(*embedder, SETTINGS, eval_data, "dev", result=path)
    before = path.read_text()
    monkeypatch.setattr(TaskResult, "to_disk", broken)
    with pytest.raises(OSError, match="disk is full"):
        judge(*embedder, SETTINGS, eval_data, "dev", result=path)
    assert path.read_text() == before


def test_a_second_model_gets_its_own_scores(embedder: tuple[Any, Any], eval_data: Path) -> None:
    model, tokenizer = embedder
    other = SimpleNamespace(model=AutoModel.from_config(model.model.config), colbert_linear=None, sparse_linear=None)
    first = judge(model, tokenizer, SETTINGS, eval_data, "dev")
    second = judge(other, tokenizer, SETTINGS, eval_data, "dev")
    assert first.retrieved != second.retrieved
    assert judge(model, tokenizer, SETTINGS, eval_data, "dev") == first


def test_judging_is_silent_and_leaves_the_generators(
    embedder: tuple[Any, Any], eval_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    states = (
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
        torch.get_rng_state().tolist(),
    )
    judge(*embedder, SETTINGS, eval_data, "dev")
    assert (
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
        torch.get_rng_state().tolist(),
    ) == states
    assert capfd.readouterr() == ("", "")


def test_a_folder_is_a_guard_scored_on_its_test_split(embedder: tuple[Any, Any], eval_data: Path) -> None:
    task = guard_task(str(eval_data))
    expected = judge(*embedder, SETTINGS, eval_data, "test").means["dense.ndcg_at_10"]
    for _ in range(2):
        assert guard_score(*embedder, SETTINGS, task) == pytest.approx(expected, abs=1e-5)


def test_an_unknown_guard_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"BEIR folder or an mteb task, but got 'NFCorpu'.*Did you mean: 'NFCorpus'"):
        guard_task("NFCorpu")


def test_a_guard_whose_data_cannot_be_had_is_one_line(
    embedder: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = guard_task("NFCorpus")
    monkeypatch.setattr(task, "load_data", lambda: (_ for _ in ()).throw(OSError("hub unreachable\nmore")))
    with pytest.raises(GuardUnavailable, match=r"^guard task NFCorpus: .* but hub unreachable$"):
        guard_score(*embedder, SETTINGS, task)
