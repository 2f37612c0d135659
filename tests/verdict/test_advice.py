"""What is advised, as values: which of it the terminal and the report say is theirs."""

import dataclasses

import pytest

from tests.support.report_fixtures import build_run
from tuner.verdict.advice import (
    Do,
    LowerRates,
    MoreData,
    MoreQueries,
    MoreTrials,
    Reason,
    Searched,
    Step,
    Tried,
    of_search,
    of_verdict,
)
from tuner.verdict.result import Guard, Verdict


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    found = Verdict.read(build_run(tmp_path_factory.mktemp("kept") / "run", gain=0.001))
    assert found is not None
    return found


def _with_best(result: Verdict, **changes: object) -> Verdict:
    assert result.best is not None
    return dataclasses.replace(result, best=dataclasses.replace(result.best, **changes))  # type: ignore[arg-type]


def test_twice_the_effect_needs_a_quarter_of_the_queries(kept: Verdict) -> None:
    """(0.04 / 0.02)^2 x 100 = 400; of a gain that is detected, or of none, no number is told."""
    small = _with_best(kept, gain=0.02, detectable=0.04, queries=100)
    more, trials = of_verdict(small, planned=16)
    assert more == MoreQueries(because=Reason.CHANCE, gain=0.02, queries=100, needed=400.0)
    assert trials == MoreTrials(because=Reason.CHANCE, made=12, planned=16)
    none = next(of_verdict(_with_best(small, gain=-0.01)))
    assert none == MoreQueries(because=Reason.CHANCE, gain=-0.01, queries=100, needed=None)
    sure = list(of_verdict(_with_best(small, ci95=(0.01, 0.03), p_value=0.01)))
    assert sure == [MoreQueries(gain=0.02, queries=100, needed=400.0)]


def test_a_guard_that_lost_is_told_beside_what_else_is_wrong(kept: Verdict) -> None:
    lost = Guard(tolerance=0.0, tasks={}, lost=["news"])
    found = list(of_verdict(dataclasses.replace(_with_best(kept, ci95=(-0.2, -0.1)), guard=lost)))
    assert found == [
        Do(step=Step.TRAIN_MORE_GENTLY, because=Reason.WORSE),
        Do(step=Step.FORGET_LESS, because=Reason.FORGOTTEN),
    ]
    assert min(advice.because for advice in found if advice.because) == Reason.FORGOTTEN


@pytest.mark.parametrize(("values", "worse"), [((0.5, 0.6), 2), ((0.5, 0.6, 0.8), 2), ((0.5, 0.8), None)])
def test_lower_rates_are_for_searches_most_of_which_did_harm(
    kept: Verdict, values: tuple[float, ...], worse: int | None
) -> None:
    trained = [Tried(number=n, value=value, rungs={}, learning_rate=n * 1e-5) for n, value in enumerate(values, 1)]
    found = list(of_search(kept, Searched(base=0.7, trained=trained, settings=8)))
    rates = [trial.learning_rate for trial in trained]
    expected = [LowerRates(worse=worse, trained=len(values), rates=rates)] if worse else []  # type: ignore[arg-type]
    assert [advice for advice in found if isinstance(advice, LowerRates)] == expected
    assert Do(step=Step.TRY_MORE_SETTINGS) not in found


def test_with_hardly_any_queries_nothing_but_more_data_is_advised(kept: Verdict) -> None:
    few = _with_best(kept, queries=49)
    expected = [MoreData(because=Reason.CHANCE, queries=49)]
    assert list(of_verdict(few, planned=16)) == expected
    trained = [Tried(number=1, value=0.5, rungs={1: 0.6, 2: 0.5}, learning_rate=1e-5)]
    assert list(of_search(few, Searched(base=0.7, trained=trained, settings=1, rungs=(0.5, 1.0)))) == expected
    assert MoreData not in map(type, of_verdict(_with_best(kept, queries=50), planned=16))
