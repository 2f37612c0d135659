"""Round which trial suggestions are drawn."""

from tests.support.study_fixtures import BASE, USER, make_study
from tuner.study.priors import leader


def test_the_leader_keeps_the_guards_where_a_trial_does() -> None:
    forgets, keeps = {"value": 0.8, "guard_excess": 0.02}, {"value": 0.7, "guard_excess": -0.01}
    both = leader(make_study(BASE, USER | {"guard_excess": 0.1}, forgets, keeps).trials)
    none = leader(make_study(BASE, USER | {"guard_excess": 0.1}, forgets).trials)
    assert (both and both.number, none and none.number) == (3, 2)
