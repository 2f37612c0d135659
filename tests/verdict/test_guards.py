"""What is lost on guards, and when a mixture with the base model replaces the winner: values chosen by hand."""

import json
from pathlib import Path

import pytest

from tests.data.test_beir import lay
from tests.support.fake import METRIC, fake_train, open_agenda
from tests.support.study_fixtures import make_guarded, make_study
from trainables.config import Progress, Report, TrialConfig
from tuner.cluster.executor import run_in_process
from tuner.data.guard_data import prepare
from tuner.errors import RequestError
from tuner.request.config import SearchConfig
from tuner.run_dir.names import task_name
from tuner.study.guards import GuardRule, Mixture, choose, excess, lost
from tuner.study.study import read_studies
from tuner.study.trials import GUARD_EXCESS
from tuner.verdict.selection import standings, winner

BASE = {"news": 0.70, "law": 0.50}


def _mixture(alpha: float, dev: float, **guard: float) -> Mixture:
    return Mixture(alpha=alpha, dev=dev, guard=guard, dev_all={METRIC: dev})


def test_a_task_is_lost_beyond_the_tolerance_or_without_a_score() -> None:
    assert lost(BASE, {"news": 0.69, "law": 0.47}, 0.02) == ["law"]
    assert lost(BASE, {"news": 0.75}, 0.02) == ["law"]
    assert lost(BASE, None, 0.02) == ["news", "law"]


def test_excess_is_the_largest_loss_less_the_tolerance() -> None:
    assert excess(BASE, {"news": 0.71, "law": 0.47}, 0.02) == pytest.approx(0.01)
    assert excess(BASE, {"news": 0.71, "law": 0.51}, 0.02) == pytest.approx(-0.03)
    assert excess(BASE, {"news": 0.67}, 0.02) == pytest.approx(0.01)  # law was left out with --resume
    assert excess(BASE, {"art": 0.1}, 0.02) == pytest.approx(-0.02)


START, TRAINED = _mixture(0.0, 0.60, news=0.70, law=0.50), _mixture(1.0, 0.70, news=0.69, law=0.50)


def test_a_mixture_better_on_both_replaces_the_winner() -> None:
    better, best = _mixture(0.25, 0.705, news=0.70, law=0.50), _mixture(0.5, 0.71, news=0.70, law=0.50)
    choice, reason = choose(START, TRAINED, [better, best], 0.02)
    assert choice is best
    assert "better than the trained model on both: dev 0.7100 over 0.7000, guards 0.6000 over 0.5950" in reason


def test_a_mixture_better_on_one_only_does_not() -> None:
    on_dev, on_guards = _mixture(0.75, 0.72, news=0.69, law=0.50), _mixture(0.25, 0.65, news=0.70, law=0.50)
    assert choose(START, TRAINED, [on_guards, on_dev], 0.02)[0] is TRAINED


def test_a_winner_that_forgets_is_replaced_by_the_best_mixture_that_does_not_and_still_gains() -> None:
    forgetful = _mixture(1.0, 0.70, news=0.60, law=0.50)
    mixtures = [
        _mixture(0.25, 0.63, news=0.70, law=0.50),
        _mixture(0.5, 0.66, news=0.69, law=0.50),
        _mixture(0.75, 0.69, news=0.64, law=0.50),
    ]
    choice, reason = choose(START, forgetful, mixtures, 0.02)
    assert choice.alpha == 0.5
    assert "loses news beyond 0.02; with alpha 0.5 no guard does, and dev is 0.6600 (0.7000 trained" in reason
    no_gain = [_mixture(0.25, 0.60, news=0.70, law=0.50)]
    assert choose(START, forgetful, no_gain, 0.02)[0] is forgetful


def test_guards_then_mixtures_then_test(tmp_path: Path) -> None:
    config = SearchConfig(num_trials=5, finalists=2, finalist_seeds=1, guard=("news",), guard_tolerance=0.06)
    agenda = open_agenda(config, tmp_path)
    run_in_process(agenda, fake_train)
    roles = [row.role for row in agenda.rows if row.role not in ("base", "user", "sampled", "finalist")]
    assert roles[:3] == ["guards"] * 3  # the base model and two finalists
    assert {row.value for row in agenda.rows if row.role == "guards"} == {None}  # the objective was not scored
    assert roles[3] == "mixtures"
    assert set(roles[4:]) == {"test"}
    # Training loses about 0.1 on the guard, half of it about 0.05: within 0.06, and better than the base model on dev.
    (mixed,) = (tmp_path / "trials").glob("*-alpha*")
    assert mixed.name.endswith("-alpha0.50")
    assert (mixed / "test.json").exists()
    assert agenda.finished


def test_what_was_scored_is_not_scored_again_on_resume(tmp_path: Path) -> None:
    config = SearchConfig(num_trials=4, finalists=1, finalist_seeds=1, guard=("news",))
    run_in_process(open_agenda(config, tmp_path), fake_train)
    again = open_agenda(config, tmp_path)
    run_in_process(again, fake_train)
    assert again.rows == []
    more = open_agenda(config.replace(guard=("news", "law")), tmp_path)
    run_in_process(more, fake_train)
    assert {row.role for row in more.rows} <= {"guards", "mixtures", "test"}
    assert json.loads((tmp_path / "trials" / "0000" / "guard.json").read_text()) == {"news": 0.5, "law": 0.5}


def test_a_mixture_that_won_is_scored_on_a_guard_that_was_added(tmp_path: Path) -> None:
    config = SearchConfig(num_trials=5, finalists=2, finalist_seeds=1, guard=("news",), guard_tolerance=0.06)
    run_in_process(open_agenda(config, tmp_path), fake_train)
    (mixed,) = (tmp_path / "trials").glob("*-alpha0.50")
    tested = (mixed / "test.json").stat().st_mtime_ns
    more = config.replace(guard=("news", "law"))
    run_in_process(open_agenda(more, tmp_path), fake_train)
    assert json.loads((mixed / "guard.json").read_text()).keys() == {"news", "law"}
    assert (mixed / "test.json").stat().st_mtime_ns == tested  # the test set is scored once
    again = open_agenda(more, tmp_path)
    run_in_process(again, fake_train)
    assert again.rows == []


def test_more_finalists_than_have_weights_are_those_that_have(tmp_path: Path) -> None:
    config = SearchConfig(num_trials=8, pruner="none", finalists=1, finalist_seeds=1, keep_checkpoints=1)
    run_in_process(open_agenda(config, tmp_path), fake_train)
    kept = {folder.parent.name for folder in (tmp_path / "trials").glob("*/checkpoint")}
    jobs: list[TrialConfig] = []

    def train(job: TrialConfig, report: Report, progress: Progress) -> None:
        jobs.append(job)
        fake_train(job, report, progress)

    agenda = open_agenda(config.replace(finalists=5, finalist_seeds=2, guard=("news",)), tmp_path)
    run_in_process(agenda, train)
    assert agenda.finished
    assert {job.name[:4] for job in jobs} <= {"0000", *kept}
    assert {job.name for job in jobs if not job.rungs and job.checkpoint is None} == {"0000"}


def test_the_winner_is_one_that_has_weights(tmp_path: Path) -> None:
    config = SearchConfig(num_trials=6, pruner="none", finalists=2, finalist_seeds=1)
    run_in_process(open_agenda(config, tmp_path), fake_train)
    search, finalists = read_studies(tmp_path)
    best, second = (standing.trial for standing in standings(search, finalists)[:2])
    assert winner(search, finalists, run_dir=tmp_path) == best
    (tmp_path / "trials" / f"{best:04d}" / "checkpoint").rmdir()
    assert winner(search, finalists, run_dir=tmp_path) == second


def test_a_new_finalist_does_not_lose_a_guard_that_was_dropped(tmp_path: Path) -> None:
    """Trial 2 was scored on news alone, the base model and trial 1 on law, too."""
    study = make_study({"role": "base", "value": 0.5}, {"role": "user", "value": 0.6}, {"value": 0.7})
    make_guarded(tmp_path, {"0000": BASE, "0001": BASE, "0002": {"news": 0.70}})
    for asked, wins in ((["news"], 2), (["some/news", "law"], 1)):
        assert winner(study, run_dir=tmp_path, rule=GuardRule.of(asked, 0.02)) == wins


def test_the_users_settings_are_scored_on_test_beside_their_mixture(tmp_path: Path) -> None:
    config = SearchConfig(num_trials=2, finalists=0, guard=("news",), guard_tolerance=0.06)
    run_in_process(open_agenda(config, tmp_path), fake_train)
    tested = {path.parent.name for path in (tmp_path / "trials").glob("*/test.json")}
    assert tested == {"0000", "0001", "0001-alpha0.50"}


def test_a_constraint_tells_the_sampler_and_the_ranking_what_forgets(tmp_path: Path) -> None:
    config = SearchConfig(num_trials=12, finalists=1, finalist_seeds=1, pruner="none", guard=("news",))
    config = config.replace(guard_constraint=True, guard_tolerance=0.1)
    agenda = open_agenda(config, tmp_path)
    run_in_process(agenda, fake_train)
    search, finalists = read_studies(tmp_path)
    trained = [trial for trial in search.trials[1:] if "duplicate_of" not in trial.user_attrs]
    for trial in trained:
        loss = 0.5 - trial.user_attrs["guard"]["news"]
        assert trial.user_attrs[GUARD_EXCESS] == pytest.approx(loss - 0.1)
        assert trial.user_attrs[GUARD_EXCESS] in trial.constraints.values()
    assert {trial.user_attrs[GUARD_EXCESS] > 0 for trial in trained} == {True, False}
    chosen = search.trials[finalists.trials[0].user_attrs["source"]]
    assert chosen.user_attrs[GUARD_EXCESS] <= 0


def test_a_folder_is_checked_like_the_eval_data_and_copied_to_the_run(tmp_path: Path) -> None:
    folder = lay(tmp_path / "news", dev=None)  # only the test split is needed
    (copy,) = prepare([str(folder)], tmp_path / "guards")
    assert Path(copy) == tmp_path / "guards" / "news"
    assert (Path(copy) / "qrels" / "test.tsv").exists()
    broken = lay(tmp_path / "law", test="query-id\tcorpus-id\tscore\nq9\tp1\t1\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RequestError) as caught:
        prepare([str(broken), str(empty)], tmp_path / "guards")
    lines = caught.value.findings
    assert any("law/qrels/test.tsv:2: the query id 'q9' is not in queries.jsonl" in line for line in lines)
    assert any("--guard needs the files corpus.jsonl, queries.jsonl, qrels/test.tsv" in line for line in lines)


@pytest.mark.parametrize(("resumed", "passages"), [(False, 3), (True, 2)])
def test_a_search_that_begins_takes_the_guards_as_they_are_now(resumed: bool, passages: int, tmp_path: Path) -> None:
    folder = lay(tmp_path / "news", dev=None)
    prepare([str(folder)], tmp_path / "guards")
    with (folder / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"_id": "p3", "text": "a third"}\n')
    (copy,) = prepare([str(folder)], tmp_path / "guards", resumed=resumed)
    assert len((Path(copy) / "corpus.jsonl").read_text().splitlines()) == passages


def test_two_guards_of_one_name_are_refused(tmp_path: Path) -> None:
    folders = [lay(tmp_path / where / "news") for where in "ab"]
    with pytest.raises(RequestError, match="two tasks are called news"):
        prepare([str(folder) for folder in folders], tmp_path / "guards")


def test_a_guard_is_called_by_its_folder_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lay(tmp_path / "all/news") / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "all/news/inside")
    assert prepare([".."], tmp_path / "guards") == (str(tmp_path / "guards/news"),)
    monkeypatch.chdir(tmp_path / "all/news")
    assert prepare(["."], tmp_path / "guards") == (str(tmp_path / "guards/news"),)
    assert [path.name for path in (tmp_path / "guards").iterdir()] == ["news"]
    urls = [f"s3://bucket/{name}/?endpoint_override=http://host" for name in ("law", "news")]
    assert [task_name(url) for url in urls] == ["law", "news"]


@pytest.mark.parametrize("name", ["/", ".news", "news.tmp"])
def test_a_guard_whose_name_would_not_be_kept_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--guard .*a task is called by its folder's name"):
        prepare([name if name == "/" else str(lay(tmp_path / name))], tmp_path / "guards")
    assert not (tmp_path / "guards").exists()


def test_an_mteb_task_is_looked_for_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--guard NFCorpu: .*Did you mean: 'NFCorpus'"):
        prepare(["NFCorpu"], tmp_path)
    with pytest.raises(RequestError, match=r"--guard NFCorpus: .*its data must be .*HF_HOME.*path of a BEIR folder"):
        prepare(["NFCorpus"], tmp_path)  # HF_HUB_OFFLINE is set in every test
