"""The statistics against values worked out by hand, and against simulated rankings with a known difference."""

import numpy as np
import pytest

from benchmarks import intervals
from tuner.verdict.statistics import (
    Spread,
    WinTieLoss,
    bootstrap_interval,
    compare,
    detectable_difference,
    lower_bound,
    paired_differences,
    permutation_p_value,
    pooled_spread,
)


def _by_query(values: list[float]) -> dict[str, float]:
    return {f"q{number}": value for number, value in enumerate(values)}


def test_compare_counts_wins_ties_losses_and_the_mean_gain() -> None:
    comparison = compare(_by_query([0.2, 0.5, 0.9, 0.1]), _by_query([0.6, 0.5, 0.8, 0.4]), seed=0)
    assert comparison.queries == 4
    assert comparison.win_tie_loss == WinTieLoss(2, 1, 1)
    assert comparison.gain == pytest.approx((0.4 + 0.0 - 0.1 + 0.3) / 4)
    assert comparison.ci95[0] < comparison.gain < comparison.ci95[1]


def test_compare_pairs_by_query_id_not_by_position() -> None:
    after = {"b": 0.0, "a": 1.0}
    assert compare({"a": 1.0, "b": 0.0}, after, seed=0).win_tie_loss == WinTieLoss(0, 2, 0)


def test_queries_of_one_model_only_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"2 stand in one only \(q1, q2"):
        paired_differences({"q0": 0.1, "q1": 0.2}, {"q0": 0.1, "q2": 0.2})
    with pytest.raises(ValueError, match="at least 2 queries, but got 1"):
        paired_differences({"q0": 0.1}, {"q0": 0.2})


def test_summation_noise_is_a_tie() -> None:
    assert not paired_differences({"a": 0.3, "b": 0.5}, {"a": 0.1 + 0.2, "b": 0.5}).any()


def test_permutation_is_exact_for_few_queries() -> None:
    # All of 2**5 sign patterns, of which only +++++ and ----- reach the observed sum.
    assert permutation_p_value(np.full(5, 0.1), seed=0) == 2 / 2**5
    # |+1+2-4| = 1 is reached by every one of the 8 patterns: their sums are +-1, +-3, +-5 and +-7.
    assert permutation_p_value(np.array([1.0, 2.0, -4.0]), seed=0) == 1.0
    # Ties carry no sign.
    assert permutation_p_value(np.array([0.1, 0.0, 0.1, 0.0]), seed=0) == 2 / 2**2


def test_permutation_of_identical_models_is_one() -> None:
    assert permutation_p_value(np.zeros(50), seed=0) == 1.0


def test_permutation_by_sampling_agrees_with_the_normal_approximation() -> None:
    differences = np.concatenate([np.full(60, 0.1), np.full(40, -0.1)])
    # A sign test of 60 to 40: two-sided binomial p = 0.0569.
    assert permutation_p_value(differences, seed=0) == pytest.approx(0.0569, abs=0.01)


def test_bootstrap_is_seeded_and_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(0.02, 0.2, 100)
    whole = bootstrap_interval(values, seed=3)
    assert whole == bootstrap_interval(values, seed=3)
    monkeypatch.setattr("tuner.verdict.statistics._CHUNK_VALUES", 1000)
    assert bootstrap_interval(values, seed=3) == pytest.approx(whole)


def test_interval_of_many_values_is_the_normal_one() -> None:
    values = np.tile([0.0, 1.0], 500)
    # mean 0.5, standard deviation 0.5, 1000 values: 0.5 -+ 1.96 * 0.5 / sqrt(1000)
    assert bootstrap_interval(values, seed=0) == pytest.approx((0.5 - 0.031, 0.5 + 0.031), abs=0.0015)


def test_interval_of_a_constant_is_a_point() -> None:
    assert bootstrap_interval(np.full(10, 0.25), seed=0) == (0.25, 0.25)


def test_detectable_difference() -> None:
    # (1.960 + 0.842) * sd / sqrt(n); sd of 50 times -1 and 50 times +1 is sqrt(100 / 99)
    differences = np.tile([-1.0, 1.0], 50)
    assert detectable_difference(differences) == pytest.approx(2.8016 * (100 / 99) ** 0.5 / 10, rel=1e-4)


def test_lower_bound_over_seeds() -> None:
    # mean 0.62, standard deviation 0.02 known to 2 degrees of freedom, 3 seeds: 0.62 - 2.92 * 0.02 / sqrt(3)
    spread = Spread(deviation=0.02, degrees=2)
    assert lower_bound([0.60, 0.62, 0.64], spread) == pytest.approx(0.62 - 2.92 * 0.02 / 3**0.5, abs=1e-5)


def test_pooled_spread_weighs_groups_by_their_degrees_of_freedom() -> None:
    # Squares around their own means: 0.01**2 * 2 and 0.02**2 * 2 over 1 + 2 degrees.
    spread = pooled_spread([[0.60, 0.62], [0.58, 0.60, 0.62], [0.9]])
    assert spread is not None
    assert spread.deviation == pytest.approx(((2e-4 + 8e-4) / 3) ** 0.5)
    assert spread.degrees == 3
    assert pooled_spread([[0.6], [0.7], []]) is None


_QUICK = {"repeats": 500, "queries": 60, "resamples": 4000}
_FULL = {"repeats": 2000, "queries": 200}


@pytest.mark.parametrize("size", [_QUICK, pytest.param(_FULL, marks=pytest.mark.slow)])
def test_intervals_cover_a_known_difference_and_find_none_where_there_is_none(size: dict[str, int]) -> None:
    rates = intervals.measure(**size)
    assert rates.truth == pytest.approx(0.048, abs=0.002)
    assert 0.93 <= rates.covered <= 0.97
    assert rates.false <= 0.035
    assert rates.found > 5 * rates.false


def test_few_queries_that_move_by_chance_are_no_gain() -> None:
    said, by_the_interval_alone = intervals.few_move(repeats=500, resamples=3000)
    assert said <= 0.025
    assert by_the_interval_alone > 2 * said
