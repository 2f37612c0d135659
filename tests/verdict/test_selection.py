"""Ranking of finalists, on studies of a few trials with values chosen by hand."""

import pytest

from tests.support.study_fixtures import BASE, USER, make_retrains, make_study
from tuner.study.guards import GuardRule
from tuner.verdict.selection import finalists, noise, standings, ties, winner


def test_finalists_are_the_best_complete_trials_without_the_base_and_without_duplicates() -> None:
    study = make_study(BASE, USER, {"value": 0.5}, {"value": None}, {"value": 0.7}, {"value": 0.7, "duplicate_of": 4})
    assert finalists(study, 2) == [4, 1]
    assert finalists(study, 10) == [4, 1, 2]


def test_finalists_that_lose_more_than_is_accepted_now_come_last() -> None:
    """Trial 2 loses 0.03 on news and nothing on law; it was 0.02 too much when it ended."""
    base, user = BASE | {"guard": {"news": 0.70, "law": 0.5}}, USER | {"guard": {"news": 0.70, "law": 0.5}}
    study = make_study(base, user, {"value": 0.7, "guard": {"news": 0.67, "law": 0.5}, "guard_excess": 0.02})
    for guard, tolerance, ranked in (("news", 0.01, [1, 2]), ("news", 0.05, [2, 1]), ("law", 0.01, [2, 1])):
        assert finalists(study, 2, rule=GuardRule.of([guard], tolerance)) == ranked


def test_without_retrainings_the_best_dev_score_wins_and_only_equal_scores_tie() -> None:
    study = make_study(BASE, USER, {"value": 0.61}, {"value": 0.62}, {"value": 0.62})
    assert winner(study) == 3
    assert ties(standings(study)) == [4]
    assert noise(standings(study)) is None


def test_no_trained_trial_no_winner() -> None:
    study = make_study(BASE, {"role": "user", "value": None})
    assert winner(study) is None
    assert ties(standings(study)) == []


def test_a_lucky_seed_does_not_win_over_a_better_mean() -> None:
    study = make_study(BASE, USER, {"value": 0.70}, {"value": 0.664})
    retrains = make_retrains({(2, 43): 0.60, (2, 44): 0.65, (3, 43): 0.665, (3, 44): 0.663})
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
    study = make_study(BASE, USER, {"value": 0.66}, {"value": 0.65})
    ranked = standings(study, make_retrains({(2, 43): 0.64, (2, 44): None, (3, 43): 0.66, (3, 44): 0.64}))
    assert [standing.trial for standing in ranked] == [3, 2, 1]
    assert ranked[0].lower is not None
    assert ranked[1].lower is not None
    assert ranked[0].lower > ranked[1].lower


def test_finalists_further_apart_than_the_noise_do_not_tie() -> None:
    study = make_study(BASE, USER, {"value": 0.70}, {"value": 0.65})
    ranked = standings(study, make_retrains({(2, 43): 0.71, (3, 43): 0.66}))
    assert ranked[0].trial == 2
    assert ties(ranked) == []


def test_a_finalist_whose_retrainings_failed_ranks_after_those_that_held() -> None:
    study = make_study(BASE, USER, {"value": 0.70}, {"value": 0.65})
    assert winner(study, make_retrains({(2, 43): None, (3, 43): 0.66})) == 3
