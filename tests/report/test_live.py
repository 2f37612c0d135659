"""The live page and status.json, at the base model, in the middle, stopped and at the end."""

import datetime
import json
import re
from pathlib import Path

import pytest

from tests.support.browser import needs_browser, opened
from tests.support.live_fixtures import BASE, HOSTILE, NOW, SCORING, TRIALS, at_the_base_model, standing, status
from tests.support.report_fixtures import build_run
from tuner.report.command import main
from tuner.report.live import FINISHED, STOPPED, Status, Work, in_a_cell, live_page, write_live
from tuner.run_dir.written import is_foreign

FINALIST = Work(name="0002-seed43", title="trial 2, seed 43", doing="step 3 of 40", is_trial=False, seconds=5.0)
STATES = {
    "base": at_the_base_model(),
    "middle": status(),
    "stopped": status(state=STOPPED, reason="the disk is full", work=[]),
    "end": status(state=FINISHED, reason="fine-tune", work=[], seconds_left=None),
}


def test_one_sentence_says_it_all() -> None:
    assert status().sentence == (
        "Trial 6 of 15. Best so far 0.7246 on dev (trial 2) against the base model's 0.6879, +0.0367; not yet tested. "
        "Done about 14:20. Cost so far 3.12."  # 12:20 and two hours; 3744 s at 3 an hour
    )


@pytest.mark.parametrize(
    ("shown", "sentence"),
    [
        (status(trials=[], work=[]), "The workers start. Nothing is scored yet. Done about 14:20. Cost so far 3.12."),
        (at_the_base_model(), "The base model. Nothing is scored yet. Cost so far 0.03."),
        (status(trials=TRIALS[:1], price_per_hour=None, seconds_left=None),
         "The base model. The base model has 0.6879 on dev."),
        (status(trials=TRIALS[:2], work=[FINALIST], price_per_hour=None, seconds_left=86400.0),
         "The trials have ended; now: trial 2, seed 43. Best so far 0.7118 on dev (trial 1) against the base model's "
         "0.6879, +0.0239; not yet tested. Done about 12:20 on 2026-11-27."),
        (status(trials=[BASE, standing(1, "complete", 0.5, role="user")], price_per_hour=None, seconds_left=None),
         "Trial 1 of 15. Best so far 0.5000 on dev (trial 1) against the base model's 0.6879, −0.1879; not yet "
         "tested."),
        (STATES["stopped"], "Stopped at trial 6 of 15. Best so far 0.7246 on dev (trial 2) against the base model's "
         "0.6879, +0.0367; not yet tested. Cost so far 3.12."),
        (STATES["end"], "The verdict: fine-tune. Best 0.7246 on dev (trial 2) against the base model's 0.6879, "
         "+0.0367. Cost so far 3.12."),
    ],
)  # fmt: skip
def test_the_sentence_follows_the_search(shown: Status, sentence: str) -> None:
    assert shown.sentence == sentence


def test_programs_read_the_same(tmp_path: Path) -> None:
    write_live(tmp_path, status())
    read = json.loads((tmp_path / "status.json").read_text())
    assert read["sentence"] == status().sentence
    assert (read["state"], read["begun"], read["planned"]) == ("running", 7, 16)
    assert read["best"] == {"trial": 2, "dev": 0.7246, "params": {"learning_rate": 1.2e-5, "train_group_size": 4}}
    assert read["end"] == (NOW + datetime.timedelta(hours=2)).isoformat()
    assert read["running"][0]["doing"] == "rung 2 of 4, step 210 of 400"
    assert read["trials"][5]["rungs"] == {"1": 0.68, "2": 0.699}
    assert read["report"] is None
    assert not is_foreign(tmp_path, "status.json")
    assert not is_foreign(tmp_path, "live.html")


@pytest.mark.parametrize("name", STATES)
def test_a_page_loads_itself_again_and_leads_to_the_report(name: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    (refresh,) = re.findall(r'http-equiv="refresh" content="([^"]+)"', live_page(tmp_path, STATES[name]))
    assert refresh == {"base": "5", "middle": "5", "stopped": "60", "end": "0; url=report.html"}[name]
    (tmp_path / "report.html").unlink()
    assert ("refresh" in live_page(tmp_path, STATES[name])) == (name != "end")


def test_trials_are_told_apart_and_lead_to_their_logs(tmp_path: Path) -> None:
    (tmp_path / "trials" / "0006").mkdir(parents=True)
    (tmp_path / "trials" / "0006" / "log.txt").touch()
    page = live_page(tmp_path, status())
    rows = dict(re.findall(r'<tr class="([^"]*)">\s*<th scope="row" class="n">(\d)</th>', page))
    assert rows == {"objective ": "2", " stopped": "5", " ": "6"}  # of each class the last
    assert page.count('href="trials/0006/log.txt"') == 2
    assert "trials/0002/log.txt" not in page  # it has none
    assert 'class="mark cross failed"' in page
    assert 'class="mark ring running"' in page
    assert 'class="band"' in page
    assert "--resume runs/first --trust_remote_code" in page


def test_a_trial_that_ran_when_the_search_stopped_runs_no_more(tmp_path: Path) -> None:
    stopped = STATES["stopped"]
    assert ">interrupted<" in re.sub(r"\s+", "", live_page(tmp_path, stopped))
    assert 'class="mark ring running"' not in live_page(tmp_path, stopped)
    assert [trial["state"] for trial in stopped.to_dict()["trials"]][5:] == ["paused", "interrupted", "waiting"]


def test_the_title_says_how_far_it_is_as_the_terminal_does(tmp_path: Path) -> None:
    assert "<title>trial 6 of 15 · 0.7246 – running</title>" in live_page(tmp_path, status())
    assert "<title>the base model – running</title>" in live_page(tmp_path, at_the_base_model())


def test_what_others_wrote_is_escaped(tmp_path: Path) -> None:
    page = live_page(tmp_path, status(model=HOSTILE, reason=HOSTILE, again=f"'{HOSTILE}'", run_dir=HOSTILE))
    assert HOSTILE not in page
    assert "<img" not in page


def test_a_cell_of_a_notebook_has_the_page_in_a_frame(tmp_path: Path) -> None:
    frame = in_a_cell(tmp_path, status(), "runs/first/")
    assert frame.startswith("<div><iframe srcdoc=")
    assert "http-equiv" not in frame
    assert "&lt;base href=&#34;runs/first/&#34;" in frame
    assert frame.count('"') == 6  # of srcdoc, style and title: nothing inside ends them
    assert frame.count("<") == 4


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("name", STATES)
def test_a_browser_has_nothing_to_complain_about(name: str, tmp_path: Path) -> None:
    write_live(tmp_path, STATES[name])
    document, complaints = opened(tmp_path / "live.html", tmp_path / "profile")
    assert complaints == []
    assert document.count('class="plot"') == (0 if name == "base" else 2)
    stale = re.search(r'id="stale"[^>]*>([^<]*)', document)  # NOW is long ago, or long to come
    assert (stale is None) == (name in ("stopped", "end"))
    assert len(document.encode()) < 60_000


@pytest.mark.slow
@needs_browser
def test_a_page_that_is_not_written_any_more_says_so(tmp_path: Path) -> None:
    long_ago = datetime.datetime.now().astimezone() - datetime.timedelta(hours=1)
    write_live(tmp_path, status(now=long_ago))
    document, _ = opened(tmp_path / "live.html", tmp_path / "profile")
    assert "Nothing was written for 60 minutes: the search may have been killed. Go on with: python -m" in document


def test_the_report_of_a_search_that_still_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = build_run(tmp_path / "run", queries=60, seeds=1, states="CCP")
    (run_dir / "result.json").unlink()
    write_live(run_dir, status(work=[SCORING]))
    assert main([str(run_dir)]) == 0
    assert capsys.readouterr().out.strip() == str(run_dir / "report.html")
    assert "No verdict yet" in (run_dir / "report.html").read_text("utf-8")


def test_paused_trials_are_named_where_there_are_any(tmp_path: Path) -> None:
    """The key called their rings "stopped early", as those of trials that do not go on."""
    page = live_page(tmp_path, status())
    assert "</svg>stopped early, or paused</li>" in page
    assert "it ends in a ring where it was stopped, or is paused, and" in page
    page = live_page(tmp_path, status(trials=[trial for trial in TRIALS if trial.state != "paused"]))
    assert "</svg>stopped early</li>" in page
    assert "it ends in a ring where it was stopped, and" in page
