"""What is said while a search runs."""

import inspect
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.support.fake import fake_rungs, new_agenda, open_agenda, open_study
from tests.support.study_fixtures import BASE, USER, make_study
from trainables.config import RungReport
from trainables.tally import Position
from tuner.request.config import SearchConfig
from tuner.run_dir.store import RunStore
from tuner.schedule.jobs import Row
from tuner.search import conclusion, wording
from tuner.search.driver import _say_earlier
from tuner.search.progress import _STYLES, _UNKNOWN, Progress
from tuner.search.session import Session
from tuner.study.trials import how_they_ended
from tuner.verdict.time_spent import FINALS

CONFIG = SearchConfig(num_trials=3, rungs=(0.5, 1.0), pruner="none", finalists=1, finalist_seeds=1)


def _row(name: str = "0002", role: str = "sampled", **values: Any) -> Row:
    return Row(name=name, role=role, params=values.pop("params", {}), started=0.0, **values)


@pytest.mark.parametrize(
    ("steps", "scoring", "words", "state"),
    [
        ((0, 0), None, "loading the model and the data", "loading"),
        ((3, 40), None, "step 3 of 40", "training"),
        ((0, 0), ("tokenised", 8192, 0), "scoring, 8,192 passages tokenised", "scoring"),
        ((40, 40), ("embedded", 1024, 60_000), "scoring, 1,024 of 60,000 passages embedded", "scoring"),
    ],
)
def test_a_job_says_how_far_it_is(steps: tuple[int, int], scoring: Position | None, words: str, state: str) -> None:
    row = _row("0000", "base", step=steps[0], steps=steps[1], scoring=scoring)
    assert (wording.doing(row, 3), wording.state(row)) == (words, state)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"step": 8, "steps": 40}, "20% trained"),
        ({"step": 20, "steps": 40, "scoring": ("embedded", 64, 640)}, "10% scored"),
        ({"step": 33, "steps": 40, "rung": 1}, "1/2 82% trained"),
        ({"step": 40, "steps": 40, "rung": 2, "state": "complete"}, "2/2"),
    ],
)
def test_the_table_says_what_a_share_is_of(values: dict[str, Any], shown: str) -> None:
    assert wording.position(_row(**values), 2) == shown


@pytest.mark.parametrize(
    ("name", "role", "long", "short"),
    [
        ("0000", "base", "base model", "0 base"),
        ("0001", "user", "trial 1 (your settings)", "1 yours"),
        ("0004", "sampled", "trial 4", "4"),
        ("0004-seed43", "finalist", "trial 4, seed 43", "4 seed 43"),
        ("0000", "test", "base model, test", "0 test"),
        ("0004-alpha0.50", "mixtures", "trial 4, mixtures", "4 mixtures"),
    ],
)
def test_a_job_has_a_name_that_a_person_reads(name: str, role: str, long: str, short: str) -> None:
    assert (wording.title(_row(name, role)), wording.short_title(_row(name, role))) == (long, short)


def test_a_rung_has_its_own_score_beside_the_best() -> None:
    """A trial that falls looked level: the best so far was shown as the rung's."""
    row = _row(state="complete", value=0.71, scores=[0.70, 0.71, 0.65])
    assert wording.result(row) == "dev 0.7000 0.7100 0.6500, best 0.7100"
    assert wording.result(replace(row, scores=[0.70, 0.71])) == "dev 0.7000 0.7100"


def test_the_best_so_far_is_a_trained_trial_against_the_base_model() -> None:
    base = _row("0000", "base", state="complete", value=0.6879)
    better = _row("0004", state="complete", value=0.7246)
    assert wording.best_so_far([base]) == "base model 0.6879"
    first = [base, _row("0001", "user", state="pruned", value=0.69), _row("0003", state="failed", value=0.9)]
    assert wording.best_so_far(first) == "best so far trial 1: 0.6900 (base model 0.6879, +0.0021)"
    rows = [*first, better, _row("0005", state="pruned", value=0.75)]
    assert wording.best_so_far(rows) == "best so far trial 4: 0.7246 (base model 0.6879, +0.0367)"
    assert wording.begun([*rows, replace(better, role="test")], 7) == "trial 4 of 6"


def test_a_trial_far_below_the_base_model_is_named() -> None:
    row = _row("0001", "user", value=0.9, scores=[0.01], params={"learning_rate": 0.002})
    assert wording.far_below(row, 0.9) == (
        "trial 1 (your settings) is far below the base model, 0.0100 against 0.9000 with lr 0.002; BGE-M3 is usually "
        "fine-tuned with 1e-6 to 3e-5"
    )
    assert wording.far_below(replace(row, scores=[0.01, 0.5]), 0.9) == ""
    assert wording.far_below(row, None) == ""
    assert wording.far_below(replace(row, role="test"), 0.9) == ""


@pytest.fixture
def searched(tmp_path: Path) -> Callable[[Console, Callable[[str, RungReport], RungReport]], None]:
    """Runs a whole search whose trials cost nothing, shown on a console; each report may be another."""

    def run(console: Console, changed: Callable[[str, RungReport], RungReport] = lambda _, report: report) -> None:
        agenda = open_agenda(CONFIG, tmp_path)
        with Progress(agenda, console, planned=CONFIG.num_trials, rungs=len(CONFIG.rungs)) as shown:
            while not agenda.finished:
                job = agenda.next()
                if job is None:
                    continue
                if job.rungs:
                    (Path(job.directory) / "checkpoint").mkdir(parents=True, exist_ok=True)
                for report in fake_rungs(job):
                    agenda.progress(job.name, report.step, 100)
                    if shown._live is None:
                        shown._say_changes()
                    agenda.rung(job.name, changed(job.name, report))
                agenda.ended(job.name)

    return run


def test_plain_lines_tell_each_job_once_with_the_time_of_day(searched: Callable[..., None]) -> None:
    out = io.StringIO()
    searched(Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert all(re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  \S", line) for line in lines)
    said = [line[21:] for line in lines]
    assert said[0] == "starting the workers (imports, base model)"
    assert said[1] == "base model  complete  dev 0.6000"
    assert said[2].startswith("trial 1 (your settings)  complete  dev 0.7000 0.8000  lr 1e-05")
    assert said[2].endswith("<- best so far")
    told = [line.split("  ")[0] for line in said[1:]]
    assert told[:3] == ["base model", "trial 1 (your settings)", "trial 2"]
    assert {"trial 1, seed 43", "base model, test", "trial 1, test"} <= set(told)
    assert len(told) == len(set(told))


def test_a_trial_that_breaks_the_model_is_told_while_it_runs(searched: Callable[..., None]) -> None:
    out = io.StringIO()
    searched(Console(file=out), lambda name, report: replace(report, value=0.01) if name == "0002" else report)
    warnings = [line for line in out.getvalue().splitlines() if "warning: " in line]
    assert len(warnings) == 1
    assert "warning: trial 2 is far below the base model, 0.0100 against 0.6000" in warnings[0]


def test_where_nobody_watches_a_line_a_minute_says_what_goes_on(tmp_path: Path) -> None:
    agenda, out = open_agenda(CONFIG, tmp_path), io.StringIO()
    shown = Progress(agenda, Console(file=out), planned=3, rungs=2)
    for _ in range(2):
        job = agenda.next()
        assert job is not None
        for report in list(fake_rungs(job))[:1]:
            agenda.progress(job.name, 7, 100)
            agenda.rung(job.name, report)
        if job.name == "0000":
            agenda.ended(job.name)
    assert re.fullmatch(
        r"trial 1 of 2; trial 1 \(your settings\): rung 1 of 2, dev 0\.7000, step 50 of 100; "
        r"best so far trial 1: 0\.7000 \(base model 0\.6000, \+0\.1000\); about 0:0\d left",
        shown._heartbeat(),
    )
    notebook = Console(file=out, force_jupyter=True)
    assert Progress(agenda, notebook, planned=3, rungs=2)._live is None  # its cell has the live page


def test_a_search_that_goes_on_knows_what_was_scored_before(tmp_path: Path) -> None:
    """It said "trial 1" of its second trial, and called best what the first had beaten."""
    study = open_study(CONFIG, tmp_path)
    before = new_agenda(CONFIG, study, tmp_path)
    for _ in range(2):
        job = before.next()
        assert job is not None
        for report in fake_rungs(job):
            before.progress(job.name, report.step, 100)
            before.rung(job.name, report)
        before.ended(job.name)
    agenda = open_agenda(CONFIG, tmp_path)
    assert [(row.name, row.role, row.state) for row in agenda.earlier] == [
        ("0000", "base", "complete"),
        ("0001", "user", "complete"),
    ]
    assert wording.age(replace(agenda.earlier[0], ended=0.0)) == 0.0  # no seconds were told, as of a duplicate
    job = agenda.next()
    assert job is not None
    assert job.name == "0002"
    shown = Progress(agenda, Console(file=io.StringIO()), planned=3, rungs=2)
    agenda.rung(job.name, replace(next(iter(fake_rungs(job))), value=0.65))
    said = shown._heartbeat()
    assert said.startswith("trial 2 of 2; trial 2: rung 1 of 2, dev 0.6500")
    assert "best so far trial 1: 0.8000 (base model 0.6000, +0.2000)" in said


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_terminal(width: int, searched: Callable[..., None]) -> None:
    out = io.StringIO()
    searched(Console(file=out, force_terminal=True, width=width, height=50, color_system=None))
    table = out.getvalue().split("\x1b[2K")[-1]
    lines = [re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", line).rstrip() for line in out.getvalue().splitlines()]
    header = next(line for line in reversed(lines) if line.startswith("trial ") and " state " in line)
    assert header.split() == ["trial", "state", "rung", "lr", "T", "group", "batch", "dev", "peak", "time"]
    assert max(map(len, lines)) <= width
    assert "…" not in table
    assert "trial 2 of 2, best so far trial" in out.getvalue()


def test_scores_are_whole_while_a_trial_trains(tmp_path: Path) -> None:
    """At 80 columns the share of its training took their place: dev was 0.72…, and the time 0:…"""
    agenda, out = open_agenda(CONFIG, tmp_path), io.StringIO()
    params = {
        "learning_rate": 8.6e-05,
        "temperature": 0.027,
        "train_group_size": 1,
        "per_device_train_batch_size": 22,
    }
    scored: dict[str, Any] = {"rung": 1, "scores": [0.7225], "value": 0.7225, "ended": 47.0}
    agenda.rows.append(_row("0001", "user", params=params, state="complete", **scored))
    agenda.rows.append(_row("0003", params=params, step=63, steps=100, **scored))
    console = Console(file=out, width=80)
    console.print(Progress(agenda, console, planned=3, rungs=2)._table())
    training = " ".join(out.getvalue().splitlines()[2].split())
    assert training == "3 training 1/2 63% trained 8.6e-05 0.027 1 22 0.7225 0.7225 0:47"


def test_what_keeps_a_search_from_moving_has_a_line_of_its_own(tmp_path: Path) -> None:
    """Behind the time it was broken in the middle of a word."""
    agenda = open_agenda(CONFIG, tmp_path)
    assert agenda.next() is not None
    agenda.note = "stopping: what runs saves its state"
    shown = Progress(agenda, Console(file=io.StringIO(), width=80), planned=3, rungs=2)
    assert shown._caption(agenda.shown)[1:] == [f"0:00 passed, {_UNKNOWN}", agenda.note]


def test_a_search_that_goes_on_shows_the_whole_time_and_the_base_models_score(tmp_path: Path) -> None:
    """Its clock began at 0:00 again, and the row of the base model had a best score and none on dev."""
    now = 100.0
    before = new_agenda(CONFIG, open_study(CONFIG, tmp_path), tmp_path, clock=lambda: now)
    job = before.next()
    assert job is not None
    before.rung(job.name, next(iter(fake_rungs(job))))
    now += 42
    before.ended(job.name)
    now = 5000.0  # of another process
    agenda = open_agenda(CONFIG, tmp_path, clock=lambda: now)
    out = io.StringIO()
    shown = Progress(agenda, Console(file=out, width=80), planned=3, rungs=2)
    now += 3
    shown._console.print(shown._table())
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert lines[1] == ["0", "base", "complete", "0.6000", "0.6000", "0:00"]
    assert lines[-1][:2] == ["0:45", "passed,"]


def test_a_search_that_goes_on_says_after_what(tmp_path: Path) -> None:
    """It counted the base model as a trial, and a paused or interrupted one not at all."""
    config = CONFIG.replace(num_trials=4, pruner="promotion", reduction_factor=2)
    study, out = open_study(config, tmp_path), io.StringIO()
    agenda, store = new_agenda(config, study, tmp_path), RunStore(str(tmp_path), tmp_path)
    session = Session(store=store, console=Console(file=out))
    _say_earlier(agenda, study, session)
    assert not out.getvalue()
    for _ in range(3):
        job = agenda.next()
        assert job is not None
        any(not agenda.rung(job.name, report) for report in fake_rungs(job))
        agenda.ended(job.name)
    assert agenda.next() is not None  # trial 3 begins, and the search is killed
    study.spent = 67.0
    _say_earlier(open_agenda(config, tmp_path), study, session)
    ended = "1 trained to the end, 0 stopped early, 1 paused, 0 failed, 1 interrupted, to go on (and the base model)"
    assert out.getvalue() == f"going on after 1:07: {ended}\n"


def test_before_the_first_steps_it_is_said_when_the_time_left_will_be(tmp_path: Path) -> None:
    """Nothing stood in its place, which looked as if nothing would."""
    agenda, out = open_agenda(CONFIG, tmp_path, clock=lambda: 100.0), io.StringIO()
    shown = Progress(agenda, Console(file=out, width=80), planned=3, rungs=2)
    assert agenda.next() is not None
    said = "time left: known after the first steps of training"
    assert shown._caption(agenda.shown) == ["the base model, before 2 trials", f"0:00 passed, {said}"]


def _words_on_screen() -> set[str]:
    """What the table and the last lines are made of: names of columns and states, labels of lines, parts of time."""
    states = {state for state in _STYLES if state != "running"} | {"loading", "training", "scoring", "complete"}
    code = inspect.getsource(conclusion)
    labels = re.findall(r"""["']([a-z][a-z ]{0,11}?)(?: {2,}\S|':<)""", code)
    models = re.findall(r'\(" *([a-z][a-z ]+)", (?:base|alike|result|best)', code)
    ends = how_they_ended(make_study(BASE, USER, {"value": None}, {**USER, "duplicate_of": 1}).trials)
    counted = re.findall(r"\d ([a-z][^,]*)", ends)
    columns = {"trial", "state", "rung", "dev", "peak", "time", *wording.SHORT.values()}
    return {*states, *labels, *models, *counted, *columns, *conclusion._PARTS.values(), *FINALS[:2], _UNKNOWN, "paused"}


def test_readers_of_chinese_find_each_word_on_the_screen_in_the_table_of_words() -> None:
    words = _words_on_screen()
    assert {"verdict", "trials", "as best", "over yours", "stopped early", "use it", "pruned"} <= words
    text = (Path(__file__).parents[2] / "README.zh.md").read_text("utf-8")
    text = text.partition("**屏幕上的英文**")[2].partition("| 步骤 |")[0]
    explained = re.findall(r"`([^`]+)`", "".join(line.split("|")[1] for line in text.splitlines() if line[:1] == "|"))
    missing = {word for word in words if not any(re.search(rf"\b{re.escape(word)}", each) for each in explained)}
    assert not missing
