"""What a plan says a search would take, with numbers that can be multiplied by hand."""

from pathlib import Path

import pytest

from tests.support.m3_fixtures import make_model, make_rows
from tuner.request.config import SearchConfig
from tuner.search.estimate import Probe, describe, memory_bytes, search_hours
from tuner.search.plan import make_plan

SHAPE = {"hidden_size": 10, "num_hidden_layers": 2}
ARGUMENTS = {"per_device_train_batch_size": 2, "train_group_size": 4, "passage_max_len": 100, "query_max_len": 50}


def test_memory_is_states_and_activations() -> None:
    """800 tokens x 10 x 2 bytes wider than 16 bits x 34 x 2 layers, beside 16 bytes a parameter."""
    assert memory_bytes(1000, SHAPE, ARGUMENTS) == 16_000 + 800 * 10 * 2 * 68
    assert memory_bytes(1000, SHAPE, {**ARGUMENTS, "fp16": True}) == 16_000 + 800 * 10 * 68


def test_sub_batches_and_checkpointing_take_less() -> None:
    """2 passages at once are 200 tokens; of each layer only its input of 2 bytes is kept, and one layer is whole."""
    assert memory_bytes(0, SHAPE, {**ARGUMENTS, "sub_batch_size": 2}) == 200 * 10 * 2 * 68
    assert memory_bytes(0, SHAPE, {**ARGUMENTS, "gradient_checkpointing": True}) == 800 * 10 * 2 * (2 * 2 + 34)


def test_hours_add_up() -> None:
    """A trial of 100 s; rungs at half and all of it, half of the trials stopped at the first: 75 s on average.

    Base 10, user 100 + 20, 8 sampled of 75 + 20, 2 retrainings of 120, the test 30: 1160 s.
    """
    config = SearchConfig(num_trials=10, rungs=(0.5, 1.0), finalists=1, finalist_seeds=2)
    probe = Probe(seconds_per_step=2, steps=50, peak_bytes=0)
    assert search_hours(config, probe, scoring=10) == pytest.approx((10 + 120 + 8 * 95 + 240 + 30) / 3600)


def test_a_plan_says_what_a_search_takes(tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    arguments = {"model_name_or_path": str(model), "train_data": [str(rows)], "per_device_train_batch_size": 2}
    config = SearchConfig(arguments=arguments, price_per_hour=3.6, time_budget="1h")
    (tmp_path / "run").mkdir()
    lines = describe(make_plan(config, tmp_path / "run", lambda _: None))
    said = {line.split()[0]: line for line in lines if not line.startswith(" ")}
    assert list(said) == ["rungs", "space", "memory", "disk", "probe", "hours", "price"]
    assert "25% 50% 100%" in said["rungs"]
    assert "x 3 continuous" in said["space"]
    assert "            learning_rate  " in "\n".join(lines)
    assert "all of them fit" in said["memory"]
    assert " s a step, " in said["probe"]
    assert " at 3.6 an hour" in said["price"]
    assert "            --time_budget 1h holds it" in lines
    assert not (tmp_path / "run" / "trials").exists()


def test_a_configuration_that_does_not_run_is_said(tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    (model / "model.safetensors").write_bytes(b"broken")
    config = SearchConfig(arguments={"model_name_or_path": str(model), "train_data": [str(rows)]})
    (tmp_path / "run").mkdir()
    assert "hours       not known: the first steps of your settings did not run: " in "\n".join(
        describe(make_plan(config, tmp_path / "run", lambda _: None))
    )
