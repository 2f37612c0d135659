"""Choices at an end of their range, in ranges whose ends can be reckoned by hand."""

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from tuner.verdict.decision import range_notes
from tuner.verdict.range_ends import range_ends
from tuner.verdict.result import RangeEnd

RATE = FloatDistribution(1e-6, 1e-4, log=True)
BATCH = IntDistribution(2, 256)


def _trial(value: object, given: BaseDistribution, role: str = "sampled") -> FrozenTrial:
    return optuna.trial.create_trial(
        value=0.5, params={"x": value}, distributions={"x": given}, user_attrs={"role": role}
    )


@pytest.mark.parametrize(
    ("value", "given", "end"),
    [
        (1e-4, RATE, "largest"),
        (9.2e-5, RATE, "largest"),  # log10 is -4.036, and two decades less 2 % end at -4.04
        (9.0e-5, RATE, None),
        (1e-5, RATE, None),
        (1.09e-6, RATE, "smallest"),
        (251, BATCH, "largest"),  # 249 of 254
        (250, BATCH, None),
        (7, BATCH, "smallest"),
        (8, BATCH, None),
        (1, IntDistribution(1, 8), None),  # nothing is below
        (8, IntDistribution(1, 8), "largest"),
        (2, IntDistribution(1, 2), None),  # every value is an end
        (8, IntDistribution(2, 8, step=2), None),
        (0.0, FloatDistribution(0.0, 0.1), None),
        (0.1, FloatDistribution(0.0, 0.1), "largest"),
        (16, CategoricalDistribution([8, 16]), None),
        (2.0, FloatDistribution(2.0, 2.0), None),
    ],
)
def test_two_percent_of_a_range_on_its_scale_are_its_end(
    value: float, given: BaseDistribution, end: str | None
) -> None:
    assert [found.end for found in range_ends(_trial(value, given))] == ([] if end is None else [end])


def test_the_users_own_line_is_no_choice_of_the_search() -> None:
    assert range_ends(_trial(1e-4, RATE, role="user")) == []


def test_it_is_said_what_to_widen() -> None:
    ends = [
        RangeEnd(name="learning_rate", value=5e-5, end="largest", limit=5e-5),
        RangeEnd(name="temperature", value=0.0101, end="smallest", limit=0.01),
    ]
    assert range_notes(ends) == [
        "the best learning_rate is the largest allowed (5e-05): widen it",
        "the best temperature, 0.0101, is next to the smallest allowed (0.01): widen it",
    ]
