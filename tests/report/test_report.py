"""The report of simulated searches: what it says, that it stands alone, and that it escapes what it shows."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
import yaml

from tests.support.browser import needs_browser, opened
from tests.support.fake import METRIC, PARETO, fake_train, open_agenda
from tests.support.report_fixtures import CHINESE, HOSTILE, OUT_OF_MEMORY, WARNING, build_run
from tests.support.storage_fixtures import stored
from tuner.cluster.executor import run_in_process
from tuner.errors import EXIT_DONE, EXIT_REQUEST
from tuner.report import findings
from tuner.report.about import elsewhere
from tuner.report.command import main
from tuner.report.page import write_report
from tuner.request.config import SearchConfig
from tuner.run_dir.store import run_folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that gained."""
    return build_run(tmp_path_factory.mktemp("report") / "gained", queries=60, gain=0.08)


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    """Its report."""
    return write_report(run_dir).read_text(encoding="utf-8")


class _Page(HTMLParser):
    """Collects links, headings and visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        if self._tag in ("h1", "h2", "h3") and data.strip():
            self.headings.append(data.strip())
        if self._tag not in ("script", "style"):
            self.text += data


def test_the_verdict_comes_first(page: str, run_dir: Path) -> None:
    result = json.loads((run_dir / "result.json").read_text())
    read = _Page(page)
    assert result["verdict"] == "fine-tune"
    assert read.headings[0] == "Fine-tune"
    assert result["reason"] in read.text
    assert read.text.index(result["reason"]) < read.text.index("All heads")


def test_every_part_is_there(page: str, run_dir: Path) -> None:
    read, result = _Page(page), json.loads((run_dir / "result.json").read_text())
    for heading in (
        "All heads",
        "Settings",
        "Queries that moved",
        "The search",
        "Trials",
        "Where the time went",
        "Data",
    ):
        assert heading in read.headings
    for drawn in ("history", "rungs", "importances", "parallel", "slices", "seeds"):
        assert f'id="{drawn}"' in page
    for scores in (result["base"], result["best"]):
        assert all(f"{value:.4f}" in read.text for value in scores["test_all"].values())
    for shown in (
        WARNING,
        OUT_OF_MEMORY,
        "python -m tuner.search --model_name_or_path",
        "--learning_rate",
        "1 h 30 min",
    ):
        assert shown in read.text
    assert "Guard" not in read.headings


def test_it_opens_without_a_network(page: str) -> None:
    beside = ("#", "data:", "best/", "result.json", "config.yaml", "trials/")
    assert all(link.startswith(beside) for link in _Page(page).links)
    own_style = page.partition("<style>")[2].partition("</style>")[0]
    assert "@import" not in own_style
    assert "url(" not in own_style
    assert len(page.encode()) < 200_000


def test_it_starts_as_html_that_phones_and_readers_understand(page: str) -> None:
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page


def test_queries_are_escaped_and_chinese_is_kept(page: str) -> None:
    assert "<script>alert" not in page
    assert HOSTILE in _Page(page).text
    assert CHINESE in _Page(page).text


def test_ranks_are_called_dense_where_the_objective_is_not(run_dir: Path, page: str, tmp_path: Path) -> None:
    assert "<small>first relevant passage: below 10 → rank 1</small>" in page
    other = shutil.copytree(run_dir, tmp_path / "run")
    config = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(config | {"metric": "dense.ndcg_at_10+0.3*sparse.ndcg_at_10"}))
    assert "<small>dense, first relevant passage: below 10 → rank 1</small>" in write_report(other).read_text("utf-8")


def test_a_guard_loss_is_shown_and_turns_the_verdict(tmp_path: Path) -> None:
    read = _Page(
        write_report(build_run(tmp_path / "run", queries=60, gain=0.08, seeds=1, states="CCC", guarded=True)).read_text(
            "utf-8"
        )
    )
    assert read.headings[0] == "Keep the base model"
    assert "Guard tasks lose more than 0.02: SciFact (0.6410 to 0.5870)." in read.text
    assert "Guard" in read.headings


def test_no_gain_keeps_the_base_model(tmp_path: Path) -> None:
    read = _Page(
        write_report(build_run(tmp_path / "run", queries=60, gain=0.002, seeds=1, states="CFC")).read_text("utf-8")
    )
    assert read.headings[0] == "Keep the base model"
    assert "detects gains of about" in read.text
    assert "What got worse, and what got better" in read.headings
    assert read.text.index("Lost most") < read.text.index("Gained most")
    assert "What to try next" in read.headings
    assert "Mend what the data check found" in read.text


def test_what_is_recommended_is_shaded(page: str, tmp_path: Path) -> None:
    """The card of a best trial that lost was shaded as the winner."""
    assert '<li class="winner">Best trial' in page
    kept = write_report(build_run(tmp_path / "run", queries=60, gain=0.002, seeds=1, states="CFC")).read_text("utf-8")
    assert '<li class="winner">Base model' in kept


def test_a_gain_is_blue_only_where_interval_and_test_agree(run_dir: Path, tmp_path: Path) -> None:
    """One whose interval lies above zero was blue with p = 0.125."""
    other = shutil.copytree(run_dir, tmp_path / "run")
    result = json.loads((other / "result.json").read_text())
    ends = {
        "recall_at_10": ([0.001, 0.02], 0.125),
        "mrr_at_10": ([0.001, 0.02], 0.01),
        "recall_at_100": ([-0.2, -0.1], 0.01),
    }
    for measure, (interval, p_value) in ends.items():
        result["gains"][f"dense.{measure}"] |= {"ci95": interval, "p_value": p_value}
    (other / "result.json").write_text(json.dumps(result))
    rows = write_report(other).read_text("utf-8").partition("<td>ndcg_at_10</td>")[2]
    tones = {name: rows.partition(f"<td>{name}</td>")[2].partition('class="n')[2].partition('"')[0] for name in ends}
    assert tones == {"recall_at_10": " ", "mrr_at_10": " good", "recall_at_100": " bad"}


def test_one_minus_sign_on_the_page(tmp_path: Path) -> None:
    text = _Page(write_report(build_run(tmp_path / "run", queries=60, gain=0.002, seeds=1)).read_text("utf-8")).text
    verdict = text.partition("All heads")[0]
    assert "interval −0." in verdict
    assert "-0." not in verdict


def test_what_the_search_ran_on_is_said(run_dir: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run_dir, tmp_path / "run")
    config = yaml.safe_load((other / "config.yaml").read_text())
    arguments = {"model_name_or_path": "/models/bge/model", "learning_rate": 4e-6, "query_max_len": 96, "fp16": True}
    (other / "config.yaml").write_text(yaml.safe_dump(config | {"arguments": arguments}))
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{other}/study.db")
    session = {
        "began": "2026-11-26T10:44:12+00:00",
        "machines": "2 CPUs, no GPU",
        "slots": "one trial at a time",
        "versions": {"torch": "2.13.0"},
    }
    study.set_user_attr("sessions", [session | {"pages": 61, "page_seconds": 0.0123}])
    (other / "trials" / "0003").mkdir(exist_ok=True)
    (other / "trials" / "0003" / "log.txt").write_text("")
    read = _Page(write_report(other).read_text("utf-8"))
    for shown in (
        "bge/model on dataset.jsonl",
        "2 CPUs, no GPU: one trial",
        "torch 2.13.0",
        "2026-11-26 10:44",
        "61 times, 12 ms",
        "4,180 rows",
    ):
        assert shown in read.text
    kept = read.text.partition("Kept from your command")[2].partition("Search again")[0]
    assert "query_max_len" in kept
    assert "learning_rate" not in kept.partition("as flags")[0]  # it was searched
    assert "trials/0003/log.txt" in read.links


def test_queries_that_all_tie_do_not_tell_what_they_detect(run_dir: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run_dir, tmp_path / "run")
    result = json.loads((other / "result.json").read_text())
    result["best"] |= {"win_tie_loss": {"win": 0, "tie": 60, "loss": 0}, "detectable": 0.0}
    (other / "result.json").write_text(json.dumps(result))
    text = _Page(write_report(other).read_text("utf-8")).text
    assert "None of its 60 queries changed: how small a gain they detect cannot be told." in text
    assert "a gain of 0.0000" not in text


def test_given_queries_are_named(run_dir: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run_dir, tmp_path / "run")
    manifest = json.loads((other / "data" / "manifest.json").read_text())
    manifest["eval"] |= {"origin": "--eval_data", "name": "faq"}
    (other / "data" / "manifest.json").write_text(json.dumps(manifest))
    text = _Page(write_report(other).read_text("utf-8")).text
    assert "test queries, from faq (--eval_data)" in " ".join(text.split())


def test_the_parts_of_the_time_add_up_to_the_clock(run_dir: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run_dir, tmp_path / "run")
    result = json.loads((other / "result.json").read_text())
    parts = {"training": 50.0, "scoring": 20.0, "overhead": 0.0, "guards": 10.0, "test": 5.0}
    result["seconds"] = {"total": 100.0} | parts
    (other / "result.json").write_text(json.dumps(result))
    page = write_report(other).read_text("utf-8")
    text = "".join(_Page(page[page.index('<section id="time">') :].partition("</section>")[0]).text.split())
    assert text.endswith("training50.0s50%scoring20.0s20%guards10.0s10%finaltest5.0s5%startandrest15.0s15%")
    assert "sidebyside" not in text


def test_jobs_side_by_side_are_told_as_shares_of_the_clock() -> None:
    """Of 90 s that jobs took, four at a time took 22.5 s of the clock; of 500 s, all of its 100 s."""
    parts = {"training": 60.0, "scoring": 20.0, "overhead": 0.0, "test": 10.0}
    assert findings.spent({"total": 100.0} | parts, 4) == [
        ("training", 15.0, 15.0),
        ("scoring", 5.0, 5.0),
        ("final test", 2.5, 2.5),
        ("start and rest", 77.5, 77.5),
    ]
    assert findings.spent({"total": 100.0, "training": 400.0, "scoring": 100.0}, 4) == [
        ("training", 80.0, 80.0),
        ("scoring", 20.0, 20.0),
    ]


def test_the_report_says_where_trials_ran_side_by_side(run_dir: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run_dir, tmp_path / "run")
    config = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(config | {"concurrent_trials": 4}))
    text = " ".join(_Page(write_report(other).read_text("utf-8")).text.split())
    assert "beside the base model 7 trained to the end, 3 stopped early, 1 failed. 4 trials side by side" in text


def test_without_finalists_there_is_no_spread(tmp_path: Path) -> None:
    page = write_report(build_run(tmp_path / "run", queries=60, seeds=1, states="CCC")).read_text("utf-8")
    assert 'id="seeds"' not in page
    assert "No finalist was trained with several seeds." in page


def test_a_search_in_which_only_the_users_settings_ended(tmp_path: Path) -> None:
    read = _Page(write_report(build_run(tmp_path / "run", queries=60, seeds=1, states="CCPPF")).read_text("utf-8"))
    assert read.headings[0] == "Keep the base model"
    assert "They are the best that was found." in read.text
    assert "Needs at least 6 trials that were trained to their end; there are 1." in read.text


def test_a_mixture_of_the_users_settings_is_not_called_theirs(tmp_path: Path) -> None:
    run_dir = build_run(tmp_path / "run", queries=60, seeds=1, states="CCPPF")
    result = json.loads((run_dir / "result.json").read_text())
    result["best"] |= {"folder": "0001-alpha0.50", "alpha": 0.5}
    (run_dir / "result.json").write_text(json.dumps(result))
    assert "They are the best that was found." not in write_report(run_dir).read_text("utf-8")


def test_weights_of_the_hybrid_score_are_said(tmp_path: Path) -> None:
    run_dir = build_run(tmp_path / "run", queries=60, seeds=1, states="CCC")
    result = json.loads((run_dir / "result.json").read_text())
    default = {"dense": 1.0, "sparse": 1.0, "colbert": 1.0}
    result["hybrid_weights"] = {"default": default, "best": default | {"sparse": 0.3}}
    (run_dir / "result.json").write_text(json.dumps(result))
    text = _Page(write_report(run_dir).read_text("utf-8")).text
    assert "compute_score with weights_for_different_modes=[1, 1, 1]." in text
    assert "weights_for_different_modes=[1, 0.3, 1] is best for the best trial on dev." in text


def test_a_search_in_which_nothing_ended(tmp_path: Path) -> None:
    read = _Page(write_report(build_run(tmp_path / "run", queries=60, seeds=1, states="CFFF")).read_text("utf-8"))
    assert read.headings[0] == "Keep the base model"
    assert "No trial was trained to its end." in read.text
    assert "All heads" not in read.headings


def test_a_search_that_has_not_ended(tmp_path: Path) -> None:
    run_dir = build_run(tmp_path / "run", queries=60, seeds=1, states="CCP")
    (run_dir / "result.json").unlink()
    assert _Page(write_report(run_dir).read_text("utf-8")).headings[0] == "No verdict yet"


def test_the_bundles_own_script_is_the_way_to_train_again(run_dir: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run_dir, tmp_path / "run")
    (other / "best").mkdir()
    (other / "best" / "train.sh").write_text("torchrun --nproc_per_node 1 -m FlagEmbedding --fp16\n")
    result = json.loads((other / "result.json").read_text())
    earlier = result | {"recommended": result["recommended"] | {"trial": 99}}
    for written, shown in ((result, True), (earlier, False)):
        (other / "best" / "result.json").write_text(json.dumps(written))
        page = write_report(other).read_text("utf-8")
        assert ("torchrun --nproc_per_node 1 -m FlagEmbedding --fp16" in page) == shown


def test_command_prints_the_path_or_refuses(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir)]) == EXIT_DONE
    assert capsys.readouterr().out.strip() == str(run_dir / "report.html")
    assert main([str(tmp_path)]) == EXIT_REQUEST
    assert f"but {tmp_path} does not" in capsys.readouterr().err


@pytest.mark.slow
@needs_browser
def test_a_browser_has_nothing_to_complain_about(run_dir: Path, page: str, tmp_path: Path) -> None:
    assert page
    document, complaints = opened(run_dir / "report.html", tmp_path)
    assert complaints == []
    assert document.count('class="plot"') >= 8


def test_the_guard_table_has_finalists_and_mixtures(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", queries=60, gain=0.08, seeds=2, guarded=True)
    page = write_report(run).read_text("utf-8")
    table = page[page.index('<section id="guard">') :].partition("</section>")[0]
    best = json.loads((run / "result.json").read_text())["best"]["trial"]
    assert table.count("<tr") == 1 + 1 + 3 + 3  # head, base model, three finalists, three mixtures
    assert f"trial {best}, alpha 0.25" in table
    assert table.count('<tr class="objective">') == 1
    assert "−0.0540" in table  # SciFact, 0.641 to 0.587


def test_the_front_of_two_objectives_is_drawn(tmp_path: Path) -> None:
    metric = f"{METRIC},{PARETO}"
    run_in_process(open_agenda(SearchConfig(num_trials=8, finalists=0, metric=metric), tmp_path), fake_train)
    config = {
        "metric": metric,
        "seed": 42,
        "num_trials": 8,
        "rungs": [0.5, 1.0],
        "storage": None,
        "command": "python -m tuner.search",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    page = write_report(tmp_path).read_text("utf-8")
    assert f"search for mean of {METRIC} and {PARETO}" in page
    for drawn in ("front", "history", "importances", "parallel", "slices"):
        assert f'id="{drawn}"' in page
    assert "with two objectives no trial is stopped" in page


def test_a_page_of_somebody_elses_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = build_run(tmp_path / "run", queries=60, seeds=1, states="CCC")
    (run_dir / "report.html").write_text("<html>mine</html>")
    assert main([str(run_dir)]) == 2
    assert "is no report of a search, and would be written over; move it" in capsys.readouterr().err
    assert (run_dir / "report.html").read_text() == "<html>mine</html>"
    (run_dir / "report.html").unlink()
    assert main([str(run_dir)]) == main([str(run_dir)]) == 0


def test_the_base_model_with_the_winners_settings_has_a_line_of_its_own(run_dir: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run_dir, tmp_path / "run")
    result = json.loads((other / "result.json").read_text())
    gain = result["gains"][METRIC]
    settings = {"sentence_pooling_method": "mean"}
    encoded = result["base"] | gain | {"folder": "0000-as-1a2b3c4d", "params": settings, "test": 0.4321, "gain": 0.0123}
    result["base"] |= {"encoded_as_best": encoded, "at_its_best": encoded}
    result |= {"verdict": "keep the base model", "versus_base": gain}
    result["recommended"] = {"trial": 0, "folder": encoded["folder"], "settings": settings}
    (other / "result.json").write_text(json.dumps(result))
    text = " ".join(_Page(write_report(other).read_text("utf-8")).text.split())
    assert "Keep the base model" in text
    assert "The base model with the winner's settings: 0.4321 on test, +0.0123 over its own" in text
    assert "Use these settings: --sentence_pooling_method mean." in text
    assert "Gain over the base model, encoded alike" in text
    assert "Together +0." in text


def test_the_copy_of_a_run_in_storage_links_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files have other names there: the page would lead nowhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run, url = build_run(tmp_path / "run", gain=0.2, seeds=1), f"file://{tmp_path}/bucket/run"
    stored(run, url)
    assert "<dt>Files</dt>" in write_report(run).read_text()
    assert "<dt>Files</dt>" not in write_report(run_folder(url)).read_text()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -m tuner.search --run_dir runs/a --seed 1", "python -m tuner.search --seed 1 --run_dir NEW_RUN_DIR"),
        ("python -m tuner.search --output-dir=runs/a", "python -m tuner.search --run_dir NEW_RUN_DIR"),
        (
            "python -m tuner.search --config 'a b.yaml'",
            "python -m tuner.search --config 'a b.yaml' --run_dir NEW_RUN_DIR",
        ),
        ("tuner --config a.yaml --run_dir a-again?x=y", "tuner --config a.yaml --run_dir a-again?x=y"),
    ],
)
def test_the_command_to_search_again_names_another_run_directory(command: str, expected: str) -> None:
    assert elsewhere(command) == expected
