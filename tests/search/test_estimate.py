"""What a plan says a search would take, with numbers that can be multiplied by hand."""

from pathlib import Path

import pytest

from tests.support.m3_fixtures import make_model, make_rows
from trainables.deepspeed_config import DS_STAGE0
from trainables.m3.memory import StepPlan
from tuner.errors import RequestError
from tuner.request.config import SearchConfig
from tuner.search.estimate import Probe, _compiles_optimizer, _first_card, _fits, describe, search_hours
from tuner.search.plan import make_plan


def test_hours_add_up() -> None:
    """A trial of 100 s; rungs at half and all of it, half of the trials stopped at the first: 75 s on average.

    Base 10, user 100 + 20, 8 sampled of 75 + 20, 2 retrainings of 120, the test 30: 1160 s.
    """
    config = SearchConfig(num_trials=10, rungs=(0.5, 1.0), finalists=1, finalist_seeds=2)
    probe = Probe(seconds_per_step=2, steps=50, peak_bytes=0)
    assert search_hours(config, probe, scoring=10) == pytest.approx((10 + 120 + 8 * 95 + 240 + 30) / 3600)


@pytest.mark.integration
def test_a_plan_says_what_a_search_takes(tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    arguments = {"model_name_or_path": str(model), "train_data": [str(rows)], "per_device_train_batch_size": 2}
    config = SearchConfig(arguments=arguments, price_per_hour=3.6, time_budget="1h")
    (tmp_path / "run").mkdir()
    lines = list(describe(make_plan(config, tmp_path / "run", lambda _: None)))
    said = {line.split()[0]: line for line in lines if not line.startswith(" ")}
    assert list(said) == ["rungs", "space", "memory", "disk", "probe", "hours", "price"]
    assert "25% 50% 100%" in said["rungs"]
    assert "x 2 continuous" in said["space"]
    assert "            learning_rate  " in "\n".join(lines)
    assert "all of them fit" in said["memory"]
    assert " s a step, " in said["probe"]
    assert " at 3.6 an hour" in said["price"]
    assert "            --time_budget 1h holds it" in lines
    assert not (tmp_path / "run" / "trials").exists()


@pytest.mark.integration
def test_a_dry_run_whose_first_steps_do_not_train_is_refused_after_its_plan(tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    (model / "model.safetensors").write_bytes(b"broken")
    config = SearchConfig(arguments={"model_name_or_path": str(model), "train_data": [str(rows)]})
    (tmp_path / "run").mkdir()
    with pytest.raises(RequestError, match="the first steps of your own settings do not train: "):
        list(describe(make_plan(config, tmp_path / "run", lambda _: None)))
    (tmp_path / "again").mkdir()
    plan = describe(make_plan(config, tmp_path / "again", lambda _: None))
    assert next(plan).startswith("rungs ")


def test_what_memory_forces_is_counted() -> None:
    def step(sub_batch_size: int | None, *, checkpointing: bool = False, smallest: bool = False) -> StepPlan:
        return StepPlan(sub_batch_size=sub_batch_size, checkpointing=checkpointing, bytes=1.0, smallest=smallest)

    assert _fits([step(None), step(None)]) == "all of them fit"
    steps = [step(None), step(None, checkpointing=True), step(8), step(9), step(1, smallest=True)]
    assert _fits(steps) == (
        "1 of 5 sampled ones compute layers again, 2 of 5 sampled ones are split into sub-batches, "
        "1 of 5 sampled ones do not fit"
    )


@pytest.mark.parametrize(("visible", "first"), [(None, "0"), ("2,3", "2"), ("", ""), ("GPU-5f1c,GPU-77", "GPU-5f1c")])
def test_a_probe_sees_one_card(visible: str | None, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _first_card() == first


def test_an_optimizer_that_has_to_be_compiled_is_known() -> None:
    assert _compiles_optimizer(str(DS_STAGE0))
    assert not _compiles_optimizer({"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}})
    assert not _compiles_optimizer({})
