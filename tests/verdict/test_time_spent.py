"""Seconds of a finished search by part, from the study and what jobs left that only scored."""

import json
from pathlib import Path

from tests.support.study_fixtures import BASE, USER, make_retrains, make_study
from tuner.verdict.time_spent import parts_of, time_spent


def _leave(trial: Path, *records: tuple[int, bool, bool, float]) -> None:
    """Writes records: rung, whether a split was scored, whether guards were, seconds."""
    trial.mkdir(parents=True)
    rows = [
        {
            "rung": rung,
            "scores": {"dense.ndcg_at_10": 0.5} if split else {},
            "guards": {"news": 0.7} if guards else {},
            "seconds": {"training": 0.0, "scoring": seconds},
        }
        for rung, split, guards, seconds in records
    ]
    (trial / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_guards_mixtures_and_the_final_test_are_counted(tmp_path: Path) -> None:
    seconds = {"training": 10.0, "scoring": 2.0, "overhead": 1.0}
    study = make_study(BASE | {"seconds": {"scoring": 3.0}}, USER | {"seconds": seconds})
    trials = tmp_path / "trials"
    _leave(trials / "0000", (0, True, False, 3.0), (0, False, True, 20.0), (0, True, False, 4.0))
    _leave(trials / "0001", (1, True, False, 2.0), (0, False, True, 30.0), (0, True, True, 90.0), (0, True, False, 5.0))
    _leave(trials / "0001-alpha0.50", (0, True, True, 6.0), (0, False, True, 1.0))
    _leave(trials / "0000-as-1a2b3c4d", (0, True, False, 3.5), (0, False, True, 2.0), (0, True, False, 4.5))
    assert time_spent(tmp_path, [study, make_retrains({})], 200.0) == {
        "total": 200.0,
        "training": 10.0,
        "scoring": 3.0 + 2.0 + 3.5,
        "overhead": 1.0,
        "guards": 20.0 + 30.0 + 1.0 + 2.0,
        "mixtures": 90.0,
        "test": 4.0 + 5.0 + 6.0 + 4.5,
    }


def test_scores_on_the_whole_corpus_of_dev_are_scoring_and_not_the_test(tmp_path: Path) -> None:
    """A finalist, and its retraining, whose training the study counts."""
    for name, seconds in (("0003", 7.0), ("0003-seed43", 8.0)):
        _leave(tmp_path / "trials" / name, (1, True, False, 1.0), (0, True, False, seconds))
        metrics = tmp_path / "trials" / name / "metrics.jsonl"
        first, last = metrics.read_text().splitlines()
        metrics.write_text(f"{first}\n{json.dumps({**json.loads(last), 'split': 'dev'})}\n")
    spent = time_spent(tmp_path, [make_study(BASE, USER)], 60.0)
    assert (spent["scoring"], spent["test"]) == (7.0 + 8.0, 0.0)


def test_a_line_that_was_cut_short_does_not_cost_the_result(tmp_path: Path) -> None:
    _leave(tmp_path / "trials" / "0001", (0, True, False, 5.0))
    with (tmp_path / "trials" / "0001" / "metrics.jsonl").open("a") as file:
        file.write('{"rung": 0, "sco')
    assert time_spent(tmp_path, [make_study(BASE, USER)], 60.0)["test"] == 5.0


def test_the_parts_of_the_clock_sum_to_it() -> None:
    seconds = {"total": 100.0, "training": 60.0, "scoring": 20.0, "mixtures": 0.0}
    assert parts_of(seconds, 1) == {"training": 60.0, "scoring": 20.0, "rest": 20.0}
    assert parts_of(seconds, 2) == {"training": 30.0, "scoring": 10.0, "rest": 60.0}
    assert parts_of(seconds | {"total": 40.0}, 1) == {"training": 30.0, "scoring": 10.0, "rest": 0.0}
    assert parts_of({"total": 5.0}, 1) == {"rest": 5.0}
