"""Ranking of finalists and the verdict, on studies of a few trials with values chosen by hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from trainables.measures import Scores
from tuner.selection import FINE_TUNE, KEEP, decide, finalists, judge, noise, read_guard, standings, ties, winner
from tuner.statistics import Comparison

METRIC = "dense.ndcg_at_10"


def _study(*trials: Mapping[str, Any]) -> optuna.Study:
    """A study of `trials`: value (None: pruned), state and user attributes."""
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        attributes = {"seed": 42, **{name: value for name, value in trial.items() if name not in ("value", "state")}}
        value = trial.get("value")
        trained = attributes.get("role") != "base"
        study.add_trial(
            create_trial(
                state=trial.get("state", TrialState.PRUNED if value is None else TrialState.COMPLETE),
                value=value,
                params={"learning_rate": 1e-5} if trained else {},
                distributions={"learning_rate": FloatDistribution(1e-6, 1e-4, log=True)} if trained else {},
                user_attrs={**attributes, "scores": {METRIC: value} if value is not None else {}},
            )
        )
    return study


def _retrains(values: Mapping[tuple[int, int], float | None]) -> optuna.Study:
    rows = [{"source": source, "seed": seed, "value": value} for (source, seed), value in values.items()]
    return _study(*({**row, "state": TrialState.FAIL} if row["value"] is None else row for row in rows))


BASE, USER = {"role": "base", "value": 0.9}, {"role": "user", "value": 0.60}


def test_finalists_are_the_best_complete_trials_without_the_base_and_without_duplicates() -> None:
    study = _study(BASE, USER, {"value": 0.5}, {"value": None}, {"value": 0.7}, {"value": 0.7, "duplicate_of": 4})
    assert finalists(study, 2) == [4, 1]
    assert finalists(study, 10) == [4, 1, 2]


def test_without_retrainings_the_best_dev_score_wins_and_only_equal_scores_tie() -> None:
    study = _study(BASE, USER, {"value": 0.61}, {"value": 0.62}, {"value": 0.62})
    assert winner(study) == 3
    assert ties(standings(study)) == [4]
    assert noise(standings(study)) is None


def test_no_trained_trial_no_winner() -> None:
    study = _study(BASE, {"role": "user", "value": None})
    assert winner(study) is None
    assert ties(standings(study)) == []


def test_a_lucky_seed_does_not_win_over_a_better_mean() -> None:
    study = _study(BASE, USER, {"value": 0.70}, {"value": 0.664})
    retrains = _retrains({(2, 43): 0.60, (2, 44): 0.65, (3, 43): 0.665, (3, 44): 0.663})
    ranked = standings(study, retrains)
    # Means 0.650 and 0.664; deviation between seeds sqrt((2 * 0.05**2 + 2 * 0.001**2) / 4) = 0.035 for both.
    deviation = ((0.05**2 + 0.001**2) / 2) ** 0.5
    assert [standing.trial for standing in ranked] == [3, 2, 1]
    # Of t with 4 degrees of freedom, 95% lie below 2.1318.
    assert ranked[1].lower == pytest.approx(0.650 - 2.1318 * deviation / 3**0.5, abs=1e-5)
    assert ranked[0].seeds == {42: 0.664, 43: 0.665, 44: 0.663}
    assert noise(ranked) == pytest.approx(deviation)
    assert ties(ranked) == [2]


def test_of_two_finalists_with_equal_means_the_one_with_more_seeds_ranks_first() -> None:
    study = _study(BASE, USER, {"value": 0.66}, {"value": 0.65})
    ranked = standings(study, _retrains({(2, 43): 0.64, (2, 44): None, (3, 43): 0.66, (3, 44): 0.64}))
    assert [standing.trial for standing in ranked] == [3, 2, 1]
    assert ranked[0].lower is not None
    assert ranked[1].lower is not None
    assert ranked[0].lower > ranked[1].lower


def test_finalists_further_apart_than_the_noise_do_not_tie() -> None:
    study = _study(BASE, USER, {"value": 0.70}, {"value": 0.65})
    ranked = standings(study, _retrains({(2, 43): 0.71, (3, 43): 0.66}))
    assert ranked[0].trial == 2
    assert ties(ranked) == []


def test_a_finalist_whose_retrainings_failed_ranks_after_those_that_held() -> None:
    study = _study(BASE, USER, {"value": 0.70}, {"value": 0.65})
    assert winner(study, _retrains({(2, 43): None, (3, 43): 0.66})) == 3


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


def test_a_guard_task_that_loses_more_than_the_tolerance_turns_the_verdict(tmp_path: Path) -> None:
    tasks = {"news": {"base": 0.70, "best": 0.66}, "law": {"base": 0.50, "best": 0.49}}
    (tmp_path / "guard.json").write_text(json.dumps({"tasks": tasks, "tolerance": 0.02}))
    guard = read_guard(tmp_path)
    assert guard is not None
    assert guard["lost"] == ["news"]
    verdict, reason = decide(_comparison((0.001, 0.04)), guard)
    assert verdict == KEEP
    assert "Guard tasks lose more than 0.02: news." in reason


def _comparison(ci95: tuple[float, float]) -> Comparison:
    counts = (100, 150, 50)
    return Comparison(queries=300, gain=0.02, ci95=ci95, p_value=0.01, win_tie_loss=counts, detectable=0.03)


QUERIES = {f"q{number}": f"What is number {number}?" for number in range(40)}


def _run(folder: Path, *, best: Mapping[str, float] | None = None, user: Mapping[str, float] | None = None) -> Path:
    """A run directory in which the base model has 0.5 on every test query."""
    values = {"0000": dict.fromkeys(QUERIES, 0.5), "0001": user, "0002": best}
    for name, scores in values.items():
        if scores is not None:
            (folder / "trials" / name).mkdir(parents=True)
            retrieved = {query: [f"{name}-passage"] for query in QUERIES}
            text = Scores(split="test", per_query={METRIC: dict(scores)}, retrieved=retrieved).to_json()
            (folder / "trials" / name / "test.json").write_text(text, encoding="utf-8")
    (folder / "data" / "eval").mkdir(parents=True)
    rows = (json.dumps({"_id": query, "text": text}) for query, text in QUERIES.items())
    (folder / "data" / "eval" / "queries.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def _judged(run_dir: Path, retrains: optuna.Study | None = None) -> dict[str, Any]:
    seconds = {"training": 10.0, "scoring": 2.0, "overhead": 1.0}
    best = {"value": 0.65, "seconds": seconds}
    study = _study(BASE, USER | {"seconds": seconds}, best, {"value": None}, {"state": TrialState.FAIL})
    return judge(run_dir, study, retrains, metric=METRIC, seed=0, total_seconds=60.0)


def test_result_of_a_clear_gain(tmp_path: Path) -> None:
    better = {query: 1.0 if number < 20 else 0.5 - (number == 39) * 0.1 for number, query in enumerate(QUERIES)}
    result = _judged(_run(tmp_path, best=better, user=dict.fromkeys(QUERIES, 0.5)), _retrains({(2, 43): 0.64}))
    assert result["verdict"] == FINE_TUNE
    assert result["base"] | {"dev": 0.9, "test": 0.5} == result["base"]
    assert result["user"] | {"trial": 1, "dev": 0.6, "test": 0.5} == result["user"]
    assert result["trials"] == {"complete": 3, "pruned": 1, "failed": 1}
    assert result["seconds"] == {"total": 60.0, "training": 20.0, "scoring": 4.0, "overhead": 2.0}
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
    json.dumps(result, allow_nan=False)


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
    result = judge(run_dir, _study(BASE, USER), metric=METRIC, seed=0, total_seconds=1.0)
    assert result["best"]["trial"] == 1
    assert result["versus_user"] is None


def test_nothing_trained_to_its_end_keeps_the_base_model(tmp_path: Path) -> None:
    study = _study(BASE, {"role": "user", "value": None, "state": TrialState.FAIL})
    result = judge(tmp_path, study, metric=METRIC, seed=0, total_seconds=1.0)
    assert result["verdict"] == KEEP
    assert result["best"] is None
    assert result["base"]["test"] is None


def test_a_winner_without_test_scores_is_refused(tmp_path: Path) -> None:
    run_dir = _run(tmp_path, user=dict.fromkeys(QUERIES, 0.6))
    with pytest.raises(ValueError, match=r"Trial 2 must be scored on test, but .*0002/test.json does not exist"):
        judge(run_dir, _study(BASE, USER, {"value": 0.8}), metric=METRIC, seed=0, total_seconds=1.0)
