"""What the samplers suggest: new points, learned from what was told, and the same ones after a kill."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from tests.support.fake import open_study
from trainables.config import RungReport
from tuner.request.config import SearchConfig
from tuner.study.samplers import make_sampler, sampler_names
from tuner.study.strategy import Strategy
from tuner.study.study import SearchStudy

TRIALS = 16


def _score(study: SearchStudy, trial: optuna.trial.Trial, value: float) -> None:
    report = RungReport(
        rung=1, fraction=1.0, step=1, examples=1, loss=1.0, value=value, scores={}, seconds={}, last=True
    )
    study.tell.report(trial, report)
    study.tell.complete(trial)


def _suggestions(sampler: str, run_dir: Path, *, broken_at: Sequence[int] = ()) -> list[dict[str, Any]]:
    """The parameters of all trials but the base model; the process is killed amid those of some."""
    config = SearchConfig(num_trials=TRIALS, sampler=sampler)
    study, found = open_study(config, run_dir), list[dict[str, Any]]()
    for number in range(TRIALS):
        if number in broken_at:
            with pytest.raises(KeyboardInterrupt):
                _killed_after_two(study)
            study = open_study(config, run_dir)
        trial, params = study.ask()
        assert trial.number == number
        _score(study, trial, 0.5 - abs(params.get("temperature", 0.02) - 0.03))
        found.append(params)
    return found[1:]


class _Killed:
    """A trial whose process is killed when it asks for a third parameter."""

    def __init__(self, trial: optuna.trial.Trial) -> None:
        self._trial, self._asked = trial, 0

    def __getattr__(self, name: str) -> Any:
        self._asked += 1
        if self._asked > 2:
            raise KeyboardInterrupt
        return getattr(self._trial, name)


def _killed_after_two(study: SearchStudy) -> None:
    space = study._space
    study._space = lambda trial, context: space(_Killed(trial), context)  # type: ignore[arg-type]
    study.ask()


@pytest.mark.parametrize("sampler", sampler_names())
def test_points_differ(sampler: str, tmp_path: Path) -> None:
    points = _suggestions(sampler, tmp_path)
    assert len({tuple(sorted(point.items())) for point in points}) == TRIALS - 1


@pytest.mark.parametrize("sampler", sorted({*sampler_names()} - {"random"}))
def test_what_was_told_is_learned_from(sampler: str, tmp_path: Path) -> None:
    """Or, in a sequence of points that lie apart, known: all are random ones only where nothing was."""
    points = {}
    for name in (sampler, "random"):
        (tmp_path / name).mkdir()
        points[name] = _suggestions(name, tmp_path / name)
    assert points[sampler][-3:] != points["random"][-3:]


@pytest.mark.integration
@pytest.mark.parametrize("sampler", sampler_names())
def test_a_kill_amid_a_suggestion_changes_nothing(sampler: str, tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = _suggestions(sampler, tmp_path / "whole")
    assert _suggestions(sampler, tmp_path / "broken", broken_at=(3, 7, 14)) == whole


def test_first_trials_are_drawn_near_the_users_own_settings_as_well() -> None:
    """The user's are at the lower end, the best at the upper one."""
    distribution = FloatDistribution(0.0, 1.0)
    study = optuna.create_study(direction="maximize")
    for role, place, value in (("base", None, 0.1), ("user", 0.0, 0.2), ("sampled", 1.0, 0.9)):
        params = {} if place is None else {"x": place}
        known = create_trial(params=params, distributions=dict.fromkeys(params, distribution), value=value)
        known.set_user_attr("role", role)
        study.add_trial(known)
    trial = study.ask()._cached_frozen_trial
    drawn = [
        make_sampler(Strategy(startup_most=50), seed=7, number=number, trials=400).sample_independent(
            study, trial, "x", distribution
        )
        for number in range(400)
    ]
    shares = np.histogram(drawn, bins=[0, 0.1, 0.2, 0.8, 1.0])[0] / len(drawn)
    # own: 0.7 x 0.25 of the draws, half-normal of 0.25: 31 % below 0.1; anywhere: as many, 10 %; the middle: 4 %
    assert shares[0] == pytest.approx(0.175 * (0.31 + 0.1 + 0.04), abs=0.03)
    assert shares[3] > 0.35
