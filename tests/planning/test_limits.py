"""What a model and its data forbid, of the user's own settings and of what a space reaches."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.m3_fixtures import make_model, make_rows
from trainables.positions import positions_of
from trainables.scoring.metric import Metric
from tuner.errors import RequestError
from tuner.planning.limits import Limits, beyond_reach, broken_limits, missing_parts
from tuner.planning.plan import Plan, make_plan
from tuner.request.config import SearchConfig

LIMITS = Limits(positions=64, rows=100, workers=2, metric=Metric.read("dense.ndcg_at_10"))


def _model(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"model_type": "xlm-roberta", "max_position_embeddings": 8194, "pad_token_id": 1}, 8192),  # bge-m3
        ({"model_type": "roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"model_type": "bert", "max_position_embeddings": 512, "position_embedding_type": "relative_key"}, None),
        ({"model_type": "modernbert", "max_position_embeddings": 8192}, None),  # rotary
        ({"model_type": "bert"}, None),
    ],
)
def test_positions_are_read_from_the_models_configuration(
    config: dict[str, Any], positions: int | None, tmp_path: Path
) -> None:
    assert positions_of(_model(tmp_path, **config)) == positions


def test_a_text_longer_than_the_positions_is_refused_before_a_trial_meets_it() -> None:
    assert broken_limits(LIMITS, {"query_max_len": 64, "passage_max_len": 65}) == [
        "--passage_max_len 65: the model has positions for 64 tokens, so a longer text ends the trial; give at most 64"
    ]


@pytest.mark.parametrize(("batch", "fits"), [(50, True), (51, False)])
def test_a_batch_has_no_more_rows_than_there_are(batch: int, fits: bool) -> None:
    """2 workers, 100 rows."""
    arguments = {"per_device_train_batch_size": batch, "dataloader_drop_last": True, "passage_max_len": 64}
    assert (broken_limits(LIMITS, arguments) == []) == fits
    own = {"dataloader_drop_last": True}
    assert (beyond_reach(LIMITS, own, {"per_device_train_batch_size": [8, batch]}, "mine")[0] == []) == fits


@pytest.mark.parametrize(
    ("thresholds", "left"), [((40, 0), True), ((61, 0), False), ((0, 500), True)], ids=["some", "none", "only small"]
)
def test_thresholds_leave_a_file(thresholds: tuple[int, int], left: bool) -> None:
    sources = [
        {"path": f"train/{rows}.jsonl", "files": [{"rows": rows}], "no_in_batch_neg": False} for rows in (40, 60)
    ]
    limits = Limits(positions=None, rows=100, sources=sources, workers=1, metric=Metric.read("dense.ndcg_at_10"))
    small, drop = thresholds
    arguments = {"same_dataset_within_batch": True, "small_threshold": small, "drop_threshold": drop}
    assert (broken_limits(limits, arguments) == []) == left


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    assert not list(missing_parts(model, {}))
    config = json.loads((model / "config.json").read_text())
    _model(model, **{**config, "vocab_size": 7})
    (problem,) = missing_parts(model, {})
    assert "embeddings for 7 tokens (vocab_size)" in problem
    (model / "model.safetensors").unlink()
    assert "there are no weights in it" in next(missing_parts(model, {}))


def _plan(folder: Path, space: str, **arguments: Any) -> Plan:
    (folder / "space.yaml").write_text(space)
    data = {
        "train_data": make_rows(folder / "rows.jsonl", rows=120),
        "model_name_or_path": make_model(folder / "model"),
    }
    config = SearchConfig(arguments={**data, **arguments}, search_space=str(folder / "space.yaml"))
    return make_plan(config, folder / "run", lambda _line: None)


@pytest.mark.parametrize(
    ("space", "arguments", "words"),
    [
        ("passage_max_len: {choices: [32, 256]}", {}, "it reaches passage_max_len 256: the model has positions for 64"),
        ("query_max_len: {low: 8, high: 65}", {}, "it reaches query_max_len 65"),
        (
            "per_device_train_batch_size: {choices: [8, 128]}",
            {"dataloader_drop_last": True},
            "it reaches per_device_train_batch_size 128: there are 72 training rows",
        ),
        ("bf16: {choices: [true, false]}", {"fp16": True}, "it can reach --fp16 and --bf16 exclude each other"),
        ("train_data: {choices: [a.jsonl]}", {}, "the search is over one value of it"),
        ("eval_steps: {choices: [10, 20]}", {}, "a trial does not take it: every trial is scored on dev at its rungs"),
        ("lerning_rate: {choices: [1e-5]}", {}, "no argument of FlagEmbedding.*did you mean --learning_rate"),
        (
            "learning_rate: {choices: [1e-5, fast]}",
            {},
            r"space.yaml, line 1: learning_rate: must be a number, but got 'fast'",
        ),
        ("learning_rate: {choices: [.nan]}", {}, "must be a number, and finite"),
        ("learning_rate: {low: 0.5, high: 2}", {}, "0 < learning_rate < 1 must hold, but got 2.0"),
        ("seed: {choices: [1]}\nseed: {choices: [2]}", {}, "seed is in line 1 and again in line 2"),
        ("temperature: {low: 0.01, hgih: 0.1}", {}, "hgih has no meaning beside low, high"),
        ("temperature: {low: 0.01, high: 0.1, log: 'no'}", {}, "log and int must be true or false, but got log='no'"),
    ],
)
def test_a_space_that_reaches_beyond_is_refused(
    space: str, arguments: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=words):
        _plan(tmp_path, space, **arguments)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    space = "learning_rate: {choices: [1e-5, 2e-5, '5e-5']}\ntemperature: {low: 1e-2, high: 5e-2, log: true}"
    plan = _plan(tmp_path, space, learning_rate=2e-5)
    import optuna

    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask()
    suggested = plan.space(trial, plan.context)
    assert trial.distributions["learning_rate"].choices == (1e-5, 2e-5, 5e-5)  # type: ignore[attr-defined]
    assert all(isinstance(value, float) for value in suggested.values())


def test_a_space_that_reaches_no_negatives_is_said(tmp_path: Path) -> None:
    space = "train_group_size: {choices: [1, 2]}\nper_device_train_batch_size: {low: 1, high: 8}"
    plan = _plan(tmp_path, space)
    assert any("it can reach --per_device_train_batch_size 1 --train_group_size 1: " in line for line in plan.warnings)


def test_lengths_that_nobody_gave_fit_the_model(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "temperature: {low: 0.01, high: 0.1}")
    assert plan.arguments["passage_max_len"] == 64
    assert any("--passage_max_len is 128 by default" in line for line in plan.warnings)
