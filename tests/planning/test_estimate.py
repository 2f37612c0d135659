"""What a plan says a search would take, with numbers that can be multiplied by hand."""

import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.m3_fixtures import make_eval, make_model, make_rows
from trainables.deepspeed_config import DS_STAGE0
from trainables.memory.plan import StepPlan
from trainables.scoring.heldout import read_passages, read_qrels
from tuner.errors import RequestError
from tuner.planning import probe
from tuner.planning.estimate import (
    Hours,
    Passages,
    _busy_cores,
    _compiles_optimizer,
    _fits,
    _price_line,
    _within,
    describe,
    scored_passages,
    search_hours,
)
from tuner.planning.plan import make_plan
from tuner.planning.probe import Probe, _first_card
from tuner.request.config import SearchConfig


def test_hours_add_up() -> None:
    """A trial of 100 s; rungs at half and all of it, half of the trials stopped at the first: 75 s on average.

    Training: the user's 100, 8 sampled of 75. Scoring: two rungs of 10 s, 8 of one and a half. The end: base 10,
    2 retrainings of 120, the test 30.
    """
    config = SearchConfig(num_trials=10, rungs=(0.5, 1.0), finalists=1, finalist_seeds=2)
    timed = Probe(seconds_per_step=2, steps=50, peak_bytes=0, seconds_per_passage=0.025)
    hours = search_hours(config, timed, Passages(corpus=400, at_rungs=400))
    assert hours.training * 3600 == pytest.approx(100 + 8 * 75)
    assert hours.scoring * 3600 == pytest.approx(20 + 8 * 15)
    assert hours.end * 3600 == pytest.approx(10 + 240 + 30)
    assert hours.total * 3600 == pytest.approx(700 + 140 + 280)


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ({}, 100 * (0.5 + 0.5 / 2)),
        ({"reduction_factor": 4}, 100 * (0.5 + 0.5 / 4)),
        ({"reduction_factor": 4, "pruner": "median"}, 100 * (0.5 + 0.5 / 2)),
        ({"metric": "dense.ndcg_at_10,dense.mrr_at_10"}, 100),
        ({"pruner": "none"}, 100),
    ],
)
def test_what_is_trained_of_a_suggestion_follows_from_what_stops_it(asked: dict[str, Any], seconds: float) -> None:
    """Rungs at half and all of 100 s."""
    config = SearchConfig(num_trials=3, rungs=(0.5, 1.0), finalists=0).replace(**asked)
    timed = Probe(seconds_per_step=2, steps=50, peak_bytes=0, seconds_per_passage=0)
    hours = search_hours(config, timed, Passages(corpus=1, at_rungs=1))
    assert hours.training * 3600 == pytest.approx(100 + seconds)


def test_a_pool_makes_rungs_cheaper_and_the_end_dearer() -> None:
    """A quarter of the passages: rungs of 2.5 s. Four models have the corpus once more."""
    config = SearchConfig(num_trials=10, rungs=(0.5, 1.0), finalists=1, finalist_seeds=2, concurrent_trials=2)
    timed = Probe(seconds_per_step=2, steps=50, peak_bytes=0, seconds_per_passage=0.025)
    hours = search_hours(config, timed, Passages(corpus=400, at_rungs=100))
    assert hours.training * 3600 == pytest.approx(100 + 4 * 75)
    assert hours.scoring * 3600 == pytest.approx(5 + 4 * 3.75)
    assert hours.end * 3600 == pytest.approx(10 + 105 + 30 + 40)


def test_what_a_time_budget_leaves() -> None:
    """6 h of trials, one of them the user's own, and 4 h of the end, three of them the finalists'."""
    hours = Hours(training=5, scoring=1, end=4, own=1, retraining=3)
    assert _within(10, hours) == "holds it"
    assert _within(8, hours) == "ends it earlier: about 3.0 h are left for trials beside your own"
    assert _within(5, hours).startswith("is less than the 5.0 h of your own settings, base model, finalists and test: ")
    assert _within(5, hours).endswith("raise it, or lower --finalists")
    assert _price_line(2.5, math.inf, hours).startswith("price       about 25.00 at 2.5 an hour: training 12.50, ")
    assert _price_line(2.5, 8, hours) == "price       about 20.00 at 2.5 an hour: 25.00 without --time_budget"
    assert _price_line(2.5, 1, hours).startswith("price       about 5.00 at 2.5 an hour")  # own settings, base and test


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
    assert "            learning_rate                " in "\n".join(lines)
    assert "            all of 200 settings drawn from the space fit" in lines
    assert any(line.startswith("            ") and " s a step, " in line for line in lines)
    assert " at 3.6 an hour: training " in said["price"]
    assert any(line.startswith("            training ") and ", scoring at rungs " in line for line in lines)
    assert "            --time_budget 1h holds it" in lines
    assert not (tmp_path / "run" / "trials").exists()


@pytest.mark.integration
def test_a_dry_run_whose_first_steps_do_not_train_is_refused_after_its_plan(tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=120)
    (model / "model.safetensors").write_bytes(b"broken")
    config = SearchConfig(arguments={"model_name_or_path": str(model), "train_data": [str(rows)]})
    (tmp_path / "run").mkdir()
    with pytest.raises(RequestError, match="the first steps of your own settings do not train, or score: "):
        list(describe(make_plan(config, tmp_path / "run", lambda _: None)))
    (tmp_path / "again").mkdir()
    plan = describe(make_plan(config, tmp_path / "again", lambda _: None))
    assert next(plan).startswith("rungs ")


def test_rungs_of_a_large_corpus_have_the_judged_and_a_hundred_for_each_query(tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", rows=1000)
    arguments = {"model_name_or_path": str(model), "train_data": [str(rows)]}
    (tmp_path / "run").mkdir()
    plan = make_plan(SearchConfig(arguments=arguments), tmp_path / "run", lambda _: None)
    whole = scored_passages(plan)
    assert whole.at_rungs == whole.corpus > 6000
    small = scored_passages(replace(plan, config=plan.config.replace(candidate_pool_size=6000)))
    assert (small.at_rungs, small.is_pool) == (whole.corpus, False)  # 200 queries
    few = tmp_path / "few"
    make_eval(few, queries=3, passages=900)
    dataset = replace(plan.dataset, eval_data=str(few))
    for size, at_rungs in ((100, 303), (500, 500), (900, 900), (0, 900)):
        asked = replace(plan, dataset=dataset, config=plan.config.replace(candidate_pool_size=size))
        assert scored_passages(asked) == Passages(corpus=900, at_rungs=at_rungs)


def test_few_passages_are_spread_over_the_corpus_and_hold_the_judged_ones(tmp_path: Path) -> None:
    make_eval(tmp_path / "eval", queries=3, passages=900)
    few = probe.write_few(tmp_path / "eval", tmp_path / "few", 90)
    (query, judged), *others = read_qrels(few, "dev").items()
    assert not others
    assert judged == read_qrels(tmp_path / "eval", "dev")[query]
    whole = [passage for passage, _ in read_passages(tmp_path / "eval")]
    found = [passage for passage, _ in read_passages(few)]
    assert set(found) == {*whole[::10], *judged}
    assert dict(read_passages(few)).items() <= dict(read_passages(tmp_path / "eval")).items()


def test_what_memory_forces_is_counted() -> None:
    def step(sub_batch_size: int | None, *, checkpointing: bool = False, smallest: bool = False) -> StepPlan:
        return StepPlan(sub_batch_size=sub_batch_size, checkpointing=checkpointing, bytes=1.0, smallest=smallest)

    assert _fits([step(None), step(None)]) == "all of 2 settings drawn from the space fit"
    steps = [step(None), step(None, checkpointing=True), step(8), step(9), step(1, smallest=True)]
    assert _fits(steps) == (
        "4 of 5 settings drawn from the space fit, "
        "of which 1 compute layers again and 2 are split into sub-batches, with the same gradients"
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


def test_what_a_probe_has_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that was stopped left DeepSpeed's compilers running."""
    monkeypatch.setattr(probe, "_PROBE_SECONDS", 1.0)
    pid = tmp_path / "pid"
    with pytest.raises(TimeoutError, match="took more than 1"):
        probe._run_in_a_group(["sh", "-c", f"sleep 60 & echo $! > {pid}; wait"], os.environ)
    process = int(pid.read_text())
    for _ in range(50):
        if not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail("it goes on")


def test_what_was_timed_beside_other_programs_is_not_to_be_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    assert list(_busy_cores(3.0)) == []
    (line,) = _busy_cores(7.94)
    assert "kept this machine's 2 cores busy (load 7.9): alone it may take many times less" in line
