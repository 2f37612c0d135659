"""What is said where a model is about to embed otherwise than it was made to."""

import json
from pathlib import Path
from typing import Any

import pytest

from tuner.planning.conventions import other_conventions, pooling_modes

MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "include_prompt": True}


def _model(folder: Path, pooling: Any = None, *files: str) -> Path:
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name in files:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("pooling", "modes"),
    [
        (MEAN, ["mean_tokens"]),
        ({"pooling_mode": "lasttoken"}, ["lasttoken"]),
        ({"pooling_mode": ["cls", "max"]}, ["cls", "max"]),
        ([], []),
        (None, []),
    ],
)
def test_a_models_own_pooling(pooling: Any, modes: list[str], tmp_path: Path) -> None:
    assert pooling_modes(_model(tmp_path, pooling)) == modes


@pytest.mark.parametrize(
    ("pooling", "files", "given", "said"),
    [
        (MEAN, (), None, "is cls by default, but the model's own 1_Pooling/config.json says mean_tokens"),
        (MEAN, (), "last_token", "is last_token, but the model's own 1_Pooling/config.json says mean_tokens"),
        (MEAN, (), "mean", ""),
        ({"pooling_mode": "lasttoken"}, (), "last_token", ""),
        ({"pooling_mode": "max"}, (), "mean", "is mean, but the model's own 1_Pooling/config.json says max"),
        (
            {"pooling_mode": ["cls", "mean"]},
            (),
            None,
            "is cls by default, but the model's own 1_Pooling/config.json says cls and mean",
        ),
        (None, (), None, "is cls by default, as BGE models pool; no file of this model says how it does"),
        (None, (), "cls", ""),
        (None, ("colbert_linear.pt",), None, ""),
    ],
)
def test_another_pooling_than_the_models_is_said(
    pooling: Any, files: tuple[str, ...], given: str | None, said: str, tmp_path: Path
) -> None:
    model, arguments = _model(tmp_path, pooling, *files), {"sentence_pooling_method": given}
    lines = list(other_conventions(model, arguments, ()))
    assert len(lines) == bool(said)
    assert all(line.startswith(f"--sentence_pooling_method {said}") and "scores too low" in line for line in lines)
    assert list(other_conventions(model, arguments, ("sentence_pooling_method",))) == []


def test_e5_has_a_prefix_on_both_sides(tmp_path: Path) -> None:
    model = _model(tmp_path, MEAN)
    one = {"sentence_pooling_method": "mean", "query_instruction_for_retrieval": "query: "}
    (line,) = other_conventions(model, one, ())
    assert "'passage: '" in line
    passage = "passage_instruction_for_retrieval"
    assert list(other_conventions(model, one, (passage,))) == []
    for given in ("passage: ", ""):
        assert list(other_conventions(model, {**one, passage: given}, ())) == []


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        ("multilingual-e5-small", {}, "by its name this is an e5 model"),
        ("models--intfloat--e5-base/snapshots/0123", {}, "by its name this is an e5 model"),
        ("arctic", {"prompts": {"query": "query: ", "document": ""}}, "has prompts: query 'query: '"),
        ("bge-m3", {"prompts": {"query": "", "document": ""}}, ""),
        ("bge-base5", {}, ""),
        ("e5-experiments/bge-m3", {}, ""),
        ("multilingual-e5-large-instruct", {}, ""),
    ],
)
def test_missing_instructions_are_said_where_the_model_tells(
    name: str, files: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = tmp_path / name
    model.mkdir(parents=True)
    (model / "config_sentence_transformers.json").write_text(json.dumps(files))
    given = {"sentence_pooling_method": "mean"}
    found = list(other_conventions(model, given, ()))
    assert [said in line for line in found] == ([True] if said else [])
    assert list(other_conventions(model, {**given, "query_instruction_for_retrieval": ""}, ())) == []
    assert list(other_conventions(model, given, ("passage_instruction_for_retrieval",))) == []
