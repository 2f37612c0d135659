"""The verdict and what result.json holds, on run directories of a few files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from tests.support.study_fixtures import BASE, METRIC, USER, make_guarded, make_retrains, make_study
from trainables.scoring.measures import Scores
from tuner.verdict.decision import FINE_TUNE, KEEP, decide, settings_notes
from tuner.verdict.encoding import base_folder
from tuner.verdict.judge import judge
from tuner.verdict.result import Verdict
from tuner.verdict.statistics import Comparison, WinTieLoss, compare


@pytest.mark.parametrize(
    ("ci95", "verdict", "said"),
    [
        ((0.001, 0.04), FINE_TUNE, "gain is +0.0200 on 300 test queries (95% interval +0.0010 to +0.0400)"),
        ((0.0, 0.04), KEEP, "cannot be told from chance"),
        ((-0.01, 0.04), KEEP, "detects gains of about 0.0300 and more"),
        ((-0.04, -0.01), KEEP, "worse than the base model"),
    ],
)
def test_verdict_follows_the_interval(ci95: tuple[float, float], verdict: str, said: str) -> None:
    decided, reason = decide(_comparison(ci95))
    assert decided == verdict
    assert said in reason


@pytest.mark.parametrize(
    ("better", "verdict"),
    [(4, KEEP), (5, KEEP), (6, FINE_TUNE)],  # p = 2 / 2**4, 2 / 2**5 and 2 / 2**6
)
def test_a_few_queries_that_all_gained_may_have_done_so_by_chance(better: int, verdict: str) -> None:
    before = {str(query): 0.5 for query in range(200)}
    gain = compare(before, {query: 0.6 if int(query) < better else 0.5 for query in before}, seed=42)
    assert gain.ci95[0] > 0
    decided, reason = decide(gain)
    assert decided == verdict
    if better == 4:
        assert "Too few queries changed to tell the gain from chance: 4 better and 0 worse of 200, p = 0.1250" in reason


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"news": 0.66, "law": 0.49}, "Guard tasks lose more than 0.02: news (0.7000 to 0.6600)."),
        ({"news": 0.70}, "Guard tasks could not be scored, and may have lost anything: law."),
        ({"news": 0.66}, "news (0.7000 to 0.6600). Guard tasks could not be scored, and may have lost anything: law."),
        (None, "Guard tasks could not be scored, and may have lost anything: news, law."),
    ],
)
def test_a_guard_task_that_loses_more_than_the_tolerance_turns_the_verdict(
    scores: dict[str, float] | None, said: str, tmp_path: Path
) -> None:
    better = {query: 1.0 if number < 20 else 0.5 for number, query in enumerate(QUERIES)}
    run_dir = make_guarded(_run(tmp_path, best=better), {"0000": {"news": 0.70, "law": 0.50}, "0002": scores})
    result = _judged(run_dir, guard=("some/news", "law"), tolerance=0.02)
    assert result["verdict"] == KEEP
    assert said in result["reason"]
    assert result["best"]["ci95"][0] > 0


def test_a_guard_that_loses_less_than_the_tolerance_does_not_turn_the_verdict(tmp_path: Path) -> None:
    better = {query: 1.0 if number < 20 else 0.5 for number, query in enumerate(QUERIES)}
    run_dir = make_guarded(_run(tmp_path, best=better), {"0000": {"news": 0.70}, "0002": {"news": 0.685}})
    result = _judged(run_dir, guard=("news",), tolerance=0.02)
    assert result["verdict"] == FINE_TUNE
    assert result["guard"]["tasks"] == {"news": {"base": 0.70, "best": 0.685, "base_as_is": None}}
    assert result["guard"]["finalists"] == {"2": {"news": 0.685}}


def test_a_guard_that_was_dropped_does_not_turn_the_verdict(tmp_path: Path) -> None:
    """Law lost 0.1, and is not asked for any more: neither by the verdict nor by the choice of a mixture."""
    better = {query: 1.0 if number < 20 else 0.5 for number, query in enumerate(QUERIES)}
    both = {"0000": {"news": 0.70, "law": 0.50}, "0002": {"news": 0.70, "law": 0.40}}
    run_dir = make_guarded(_run(tmp_path, best=better), both)
    assert _judged(run_dir, guard=("news",), tolerance=0.02)["verdict"] == FINE_TUNE
    rows = [{"alpha": 0.5, "dev": {METRIC: 0.94}, "guard": {"news": 0.70, "law": 0.50}}]
    (run_dir / "trials" / "0002" / "mixtures.json").write_text(json.dumps(rows))
    result = _judged(run_dir, guard=("news",), tolerance=0.02)
    assert (result["verdict"], result["best"]["alpha"]) == (FINE_TUNE, None)
    assert (result["guard"]["lost"], result["guard"]["finalists"]) == ([], {"2": {"news": 0.70}})
    assert {tuple(row["guard"]) for row in result["mixtures"]["rows"]} == {("news",)}


def test_a_chosen_mixture_is_what_is_judged(tmp_path: Path) -> None:
    better = {query: 1.0 if number < 20 else 0.5 for number, query in enumerate(QUERIES)}
    run_dir = make_guarded(_run(tmp_path), {"0000": {"news": 0.70}, "0002": {"news": 0.60}})
    (run_dir / "trials" / "0002-alpha0.50").mkdir()
    make_guarded(run_dir, {"0002-alpha0.50": {"news": 0.695}})
    _write_scores(run_dir, "0002-alpha0.50", better)
    # Trial 2 has 0.65 on dev and loses 0.10 on news; half of it has 0.64 and loses 0.005.
    rows = [{"alpha": 0.5, "dev": {METRIC: 0.94}, "guard": {"news": 0.695}}]
    (run_dir / "trials" / "0002" / "mixtures.json").write_text(json.dumps(rows))
    result = _judged(run_dir, guard=("news",), tolerance=0.02)
    assert result["verdict"] == FINE_TUNE
    assert (result["best"]["trial"], result["best"]["alpha"]) == (2, 0.5)
    assert result["best"]["dev"] == 0.94
    assert [row["alpha"] for row in result["mixtures"]["rows"]] == [0.0, 0.5, 1.0]
    assert result["guard"]["tasks"]["news"] == {"base": 0.70, "best": 0.695, "base_as_is": None}


def test_an_objective_that_loses_for_certain_keeps_the_base_model_whatever_their_mean_gains() -> None:
    # dense loses 0.085, sparse gains 0.195, so that their mean gains 0.055
    gain, loss = _comparison((0.03, 0.08), 0.055), _comparison((-0.1, -0.07), -0.085)
    other, unsure = _comparison((0.17, 0.22), 0.195), _comparison((-0.02, 0.03), 0.005)
    decided, reason = decide(gain, None, {"dense.ndcg_at_10": loss, "sparse.ndcg_at_10": other})
    assert decided == KEEP
    assert reason.startswith("The best trial is worse than the base model in dense.ndcg_at_10. The gain is +0.0550 on")
    assert reason.endswith(
        "in the mean of 2 objectives: dense.ndcg_at_10 -0.0850 (95% interval -0.1000 to -0.0700); "
        "sparse.ndcg_at_10 +0.1950 (95% interval +0.1700 to +0.2200)."
    )
    assert decide(gain, None, {"dense.ndcg_at_10": unsure, "sparse.ndcg_at_10": other})[0] == FINE_TUNE


def test_each_of_two_objectives_is_compared(tmp_path: Path) -> None:
    other, run_dir = "sparse.ndcg_at_10", _run(tmp_path)
    both = f"{METRIC},{other}"
    for name, dense, sparse in (("0000", 0.5, 0.2), ("0002", 0.4, 0.6)):
        per_query = {METRIC: dict.fromkeys(QUERIES, dense), other: dict.fromkeys(QUERIES, sparse)}
        scores = Scores(split="test", per_query=per_query, retrieved={q: [] for q in QUERIES}).with_metric(both)
        (run_dir / "trials" / name).mkdir(parents=True, exist_ok=True)
        (run_dir / "trials" / name / "test.json").write_text(scores.to_json())
    study = optuna.create_study(directions=["maximize"] * 2)
    for number, role in enumerate(("base", "user", "sampled")):
        values = [0.5 + number / 10, 0.2]
        attributes = {"role": role, "seed": 42, "best_value": sum(values) / 2, "scores": {both: sum(values) / 2}}
        study.add_trial(create_trial(values=values, user_attrs=attributes))
    result = _plain(judge(run_dir, study, metric=both, seed=0, total_seconds=1.0))
    assert result["verdict"] == KEEP
    assert {name: round(gain["gain"], 6) for name, gain in result["objectives"].items()} == {METRIC: -0.1, other: 0.4}
    assert result["best"]["gain"] == pytest.approx(0.15)


MEAN = {"sentence_pooling_method": "mean"}
ALIKE = base_folder(MEAN)


def _encoded(tmp_path: Path, best: float, alike: float, **more: Any) -> dict[str, Any]:
    """The base model has 0.5 with the user's pooling and `alike` with mean, which trial 2 uses and has `best`."""
    run_dir = _run(tmp_path, best=dict.fromkeys(QUERIES, best), user=dict.fromkeys(QUERIES, 0.45))
    _write_scores(run_dir, ALIKE, dict.fromkeys(QUERIES, alike))
    _write_dev(run_dir, ALIKE, alike)
    study = make_study(BASE | {"value": 0.5}, USER, {"value": 0.9, "arguments": {"learning_rate": 1e-5, **MEAN}})
    return _plain(judge(run_dir, study, metric=METRIC, seed=0, total_seconds=1.0, **more))


def _write_dev(run_dir: Path, folder: str, value: float) -> None:
    scores = Scores(split="dev", per_query={METRIC: {"d": value}}, retrieved={"d": []})
    (run_dir / "trials" / folder / "dev.json").write_text(scores.to_json())


def test_a_gain_from_encoding_alone_keeps_the_base_model_with_these_settings(tmp_path: Path) -> None:
    result = _encoded(tmp_path, best=0.8, alike=0.8)
    assert result["verdict"] == KEEP
    assert "score the same on each of the 40 test queries" in result["reason"]
    assert result["best"]["gain"] == 0.0
    assert result["base"]["test"] == 0.5
    encoded = result["base"]["encoded_as_best"]
    assert (encoded["dev"], encoded["test"], encoded["params"]) == (0.8, pytest.approx(0.8), MEAN)
    assert encoded["gain"] == pytest.approx(0.3)
    assert result["versus_base"]["gain"] == pytest.approx(0.3)
    assert result["recommended"] == {"trial": 0, "folder": ALIKE, "settings": MEAN}
    line, use = settings_notes(Verdict.from_dict(result))
    assert line.startswith("the base model with the winner's settings: 0.8000 on test, +0.3000 over its own (95% int")
    assert use == "use these settings: --sentence_pooling_method mean"


def test_where_both_gain_the_gain_is_that_of_training(tmp_path: Path) -> None:
    result = _encoded(tmp_path, best=0.8, alike=0.6)
    assert result["verdict"] == FINE_TUNE
    assert result["best"]["gain"] == pytest.approx(0.2)
    assert result["gains"][METRIC]["gain"] == pytest.approx(0.2)
    assert result["versus_base"]["gain"] == pytest.approx(0.3)
    assert result["recommended"] == {"trial": 2, "folder": "0002", "settings": {}}
    assert {row["retrieved_before"][0] for row in result["queries"]["gained"]} == {f"{ALIKE}-passage"}


def test_training_that_makes_up_for_worse_settings_keeps_the_base_model_as_it_is(tmp_path: Path) -> None:
    result = _encoded(tmp_path, best=0.4, alike=0.2)
    assert result["verdict"] == KEEP
    assert result["best"]["gain"] == pytest.approx(0.2)
    assert "but over the base model with your own settings it is -0.1000" in result["reason"]
    assert result["recommended"] == {"trial": 0, "folder": "0000", "settings": {}}


def test_settings_of_another_finalist_may_be_what_the_base_model_is_best_used_with(tmp_path: Path) -> None:
    short = {"passage_max_len": 16}
    folder = base_folder(short)
    run_dir = _run(tmp_path, best=dict.fromkeys(QUERIES, 0.7))
    for name, value in ((ALIKE, 0.6), (folder, 0.9)):
        _write_scores(run_dir, name, dict.fromkeys(QUERIES, value))
        _write_dev(run_dir, name, value)
    study = make_study(
        BASE | {"value": 0.5}, USER, {"value": 0.95, "arguments": MEAN}, {"value": 0.3, "arguments": short}
    )
    result = _plain(judge(run_dir, study, metric=METRIC, seed=0, total_seconds=1.0))
    assert result["verdict"] == KEEP
    assert "but over the base model with --passage_max_len 16 it is -0.2000" in result["reason"]
    assert result["recommended"] == {"trial": 0, "folder": folder, "settings": short}


@pytest.mark.parametrize(("as_is", "alike", "lost"), [(0.7, 0.61, ["news"]), (0.61, 0.7, ["news"]), (0.61, 0.61, [])])
def test_a_guard_may_not_lose_against_either_base_model(
    as_is: float, alike: float, lost: list[str], tmp_path: Path
) -> None:
    make_guarded(tmp_path, {"0000": {"news": as_is}, ALIKE: {"news": alike}, "0002": {"news": 0.6}})
    result = _encoded(tmp_path, best=0.8, alike=0.6, guard=("news",), tolerance=0.02)
    assert result["guard"]["lost"] == lost
    assert result["guard"]["tasks"]["news"] == {"base": alike, "best": 0.6, "base_as_is": as_is}
    assert result["verdict"] == (KEEP if lost else FINE_TUNE)


def _comparison(ci95: tuple[float, float], gain: float = 0.02) -> Comparison:
    counts = WinTieLoss(100, 150, 50)
    return Comparison(queries=300, gain=gain, ci95=ci95, p_value=0.01, win_tie_loss=counts, detectable=0.03)


QUERIES = {f"q{number}": f"What is number {number}?" for number in range(40)}


def _run(folder: Path, *, best: Mapping[str, float] | None = None, user: Mapping[str, float] | None = None) -> Path:
    """A run directory in which the base model has 0.5 on every test query."""
    values = {"0000": dict.fromkeys(QUERIES, 0.5), "0001": user, "0002": best}
    for name, scores in values.items():
        if scores is not None:
            _write_scores(folder, name, scores)
    (folder / "data" / "eval").mkdir(parents=True)
    rows = (json.dumps({"_id": query, "text": text}) for query, text in QUERIES.items())
    (folder / "data" / "eval" / "queries.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def _write_scores(folder: Path, name: str, scores: Mapping[str, float]) -> None:
    (folder / "trials" / name).mkdir(parents=True, exist_ok=True)
    retrieved = {query: [f"{name}-passage"] for query in QUERIES}
    text = Scores(split="test", per_query={METRIC: dict(scores)}, retrieved=retrieved).to_json()
    (folder / "trials" / name / "test.json").write_text(text, encoding="utf-8")


def _judged(run_dir: Path, retrains: optuna.Study | None = None, **guards: Any) -> dict[str, Any]:
    seconds = {"training": 10.0, "scoring": 2.0, "overhead": 1.0}
    best = {"value": 0.65, "seconds": seconds}
    study = make_study(BASE, USER | {"seconds": seconds}, best, {"value": None}, {"state": TrialState.FAIL})
    return _plain(judge(run_dir, study, retrains, metric=METRIC, seed=0, total_seconds=60.0, **guards))


def _plain(verdict: Verdict) -> dict[str, Any]:
    """What stands in result.json, and is read from it again as it was."""
    values: dict[str, Any] = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert json.loads(json.dumps(Verdict.from_dict(values).to_dict())) == values
    return values


def test_result_of_a_clear_gain(tmp_path: Path) -> None:
    better = {query: 1.0 if number < 20 else 0.5 - (number == 39) * 0.1 for number, query in enumerate(QUERIES)}
    result = _judged(_run(tmp_path, best=better, user=dict.fromkeys(QUERIES, 0.5)), make_retrains({(2, 43): 0.64}))
    assert result["verdict"] == FINE_TUNE
    assert result["base"] | {"dev": 0.9, "test": 0.5} == result["base"]
    assert result["user"] | {"trial": 1, "dev": 0.6, "test": 0.5} == result["user"]
    assert result["trials"] == {"complete": 3, "pruned": 1, "failed": 1}
    spent = {"total": 60.0, "training": 20.0, "scoring": 4.0, "overhead": 2.0}
    assert result["seconds"] == spent | {"guards": 0.0, "mixtures": 0.0, "test": 0.0}
    best = result["best"]
    assert best["trial"] == 2
    assert best["params"] == {"learning_rate": 1e-5}
    assert best["test"] == pytest.approx(0.5 + (20 * 0.5 - 0.1) / 40)
    assert best["test_all"] == {METRIC: best["test"]}
    assert best["gain"] == pytest.approx((20 * 0.5 - 0.1) / 40)
    assert best["ci95"][0] > 0
    assert best["win_tie_loss"] == {"win": 20, "tie": 19, "loss": 1}
    assert best["seeds"] == [{"seed": 42, "dev": 0.65}, {"seed": 43, "dev": 0.64}]
    assert result["optimism"] == pytest.approx(0.65 - best["test"])
    assert result["versus_user"]["gain"] == pytest.approx(best["gain"])
    assert [row["trial"] for row in result["finalists"]] == [2]


def test_queries_that_moved_most_come_with_their_text_and_what_was_retrieved(tmp_path: Path) -> None:
    moved = dict.fromkeys(QUERIES, 0.5) | {"q3": 1.0, "q4": 0.9, "q5": 0.1}
    queries = _judged(_run(tmp_path, best=moved))["queries"]
    assert [row["id"] for row in queries["gained"]] == ["q3", "q4"]
    assert queries["lost"] == [
        {
            "id": "q5",
            "text": "What is number 5?",
            "before": 0.5,
            "after": 0.1,
            "retrieved_before": ["0000-passage"],
            "retrieved_after": ["0002-passage"],
        }
    ]


def test_a_harmful_search_keeps_the_base_model(tmp_path: Path) -> None:
    worse = {query: 0.4 if number % 2 else 0.3 for number, query in enumerate(QUERIES)}
    result = _judged(_run(tmp_path, best=worse))
    assert result["verdict"] == KEEP
    assert result["best"]["ci95"][1] < 0


def test_a_model_that_changes_nothing_is_said_to_score_the_same(tmp_path: Path) -> None:
    result = _judged(_run(tmp_path, best=dict.fromkeys(QUERIES, 0.5)))
    assert result["verdict"] == KEEP
    assert "score the same on each of the 40 test queries" in result["reason"]


def test_user_settings_that_win_are_not_compared_with_themselves(tmp_path: Path) -> None:
    run_dir = _run(tmp_path, user=dict.fromkeys(QUERIES, 0.6))
    result = _plain(judge(run_dir, make_study(BASE, USER), metric=METRIC, seed=0, total_seconds=1.0))
    assert result["best"]["trial"] == 1
    assert result["versus_user"] is None


def test_nothing_trained_to_its_end_keeps_the_base_model(tmp_path: Path) -> None:
    study = make_study(BASE, {"role": "user", "value": None, "state": TrialState.FAIL})
    result = _plain(judge(tmp_path, study, metric=METRIC, seed=0, total_seconds=1.0))
    assert result["verdict"] == KEEP
    assert result["best"] is None
    assert result["base"]["test"] is None


def test_a_winner_without_test_scores_is_refused(tmp_path: Path) -> None:
    run_dir = _run(tmp_path, user=dict.fromkeys(QUERIES, 0.6))
    with pytest.raises(ValueError, match=r"Trial 0002 must be scored on test, but .*0002/test.json does not exist"):
        judge(run_dir, make_study(BASE, USER, {"value": 0.8}), metric=METRIC, seed=0, total_seconds=1.0)
