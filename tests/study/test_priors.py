"""Round which trial suggestions are drawn."""

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from tests.support.study_fixtures import BASE, USER, make_study
from tuner.study.priors import leader
from tuner.study.trials import BEST_VALUE


def test_the_leader_keeps_the_guards_where_a_trial_does() -> None:
    forgets, keeps = {"value": 0.8, "guard_excess": 0.02}, {"value": 0.7, "guard_excess": -0.01}
    both = leader(make_study(BASE, USER | {"guard_excess": 0.1}, forgets, keeps).trials)
    none = leader(make_study(BASE, USER | {"guard_excess": 0.1}, forgets).trials)
    assert (both and both.number, none and none.number) == (3, 2)


def test_the_leader_of_two_objectives_has_the_best_mean_or_is_the_furthest() -> None:
    """Means 0.55 and 0.6; before, 0.5 at the second rung is further than 0.9 at the first."""
    study = optuna.create_study(directions=["maximize"] * 2)
    for rungs in ({"rung_1": 0.9}, {"rung_1": 0.4, "rung_2": 0.5}):
        study.add_trial(_of(TrialState.RUNNING, None, rungs))
    furthest = leader(study.trials)
    for values in ([0.9, 0.2], [0.5, 0.7]):
        study.add_trial(_of(TrialState.COMPLETE, values, {BEST_VALUE: sum(values) / 2}))
    best = leader(study.trials)
    assert (furthest and furthest.number, best and best.number) == (1, 3)


def _of(state: TrialState, values: list[float] | None, attributes: dict[str, float]) -> FrozenTrial:
    rate = FloatDistribution(1e-6, 1e-4, log=True)
    return create_trial(
        state=state,
        values=values,
        params={"learning_rate": 1e-5},
        distributions={"learning_rate": rate},
        user_attrs=attributes,
    )
