"""What the pictures of a report hold, and what they leave out."""

import json

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from tuner.report.figures import FEWEST_FOR_IMPORTANCE, Picture, search_pictures, seeds_picture
from tuner.verdict.result import Finalist, SeedScore

METRIC = "dense.ndcg_at_10"


def _pictures(trained: int, *, winner: int | None = None, choice: str = "linear") -> dict[str, Picture]:
    """Pictures of a search with the base model and `trained` trials of two parameters."""
    study = optuna.create_study(direction="maximize")
    study.add_trial(create_trial(value=0.6, user_attrs={"role": "base"}))
    space = {
        "learning_rate": FloatDistribution(1e-6, 1e-4, log=True),
        "schedule": CategoricalDistribution((choice, "x")),
    }
    for number in range(trained):
        params = {"learning_rate": 10.0 ** -(4.5 + number % 2), "schedule": choice if number % 3 else "x"}
        values = {1: 0.5 + number / 100, 2: 0.6 + number / 100}
        trial = create_trial(value=values[2], params=params, distributions=space, intermediate_values=values)
        study.add_trial(trial)
    drawn = search_pictures(study, metric=METRIC, rungs=(0.5, 1.0), winner=winner)
    return {picture.title: picture for picture in drawn}


def test_too_few_trials_are_said_and_not_drawn() -> None:
    pictures = _pictures(FEWEST_FOR_IMPORTANCE - 1)
    assert not pictures["Importance of each parameter"].html
    assert "5 completed trials are too few to tell; at least 6" in pictures["Importance of each parameter"].caption
    assert _pictures(FEWEST_FOR_IMPORTANCE)["Importance of each parameter"].html
    untrained = _pictures(0)
    assert not untrained["Slices"].html
    assert untrained["Rungs and pruned trials"].caption == "No trial that held reached its first rung."


def test_the_base_model_is_in_the_history_and_not_among_the_parallel_lines() -> None:
    pictures = _pictures(3)
    assert '"x":[0,1,2,3]' in pictures["History"].html
    assert '["learning_rate","None"]' not in pictures["Parallel coordinates"].html
    assert '["learning_rate","3.16e-05"]' in pictures["Parallel coordinates"].html


def test_rungs_are_named_by_their_share_of_the_examples() -> None:
    assert '"ticktext":["50%","100%"]' in _pictures(3)["Rungs and pruned trials"].html


def test_a_value_cannot_end_the_script_it_is_drawn_by() -> None:
    for picture in _pictures(6, choice="</script><b>").values():
        assert picture.html.count("</script>") == 1


@pytest.mark.parametrize(
    ("ends", "labels"),
    [
        ((4, 16), ["1", "2", "5", "10", "20", "50"]),  # of 1, 3, 10 and 30 only 10 lies between the ends
        ((8, 64), ["1", "3", "10", "30"]),
        ((0.4, 0.6), ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9"]),
        ((0.5, 30), ["0.1", "0.3", "1", "3", "10", "30"]),
        ((1e-6, 2e-5), ["1e-6", "3e-6", "1e-5", "3e-5"]),
        ((1.2e-5, 1.9e-5), ["1.2e-5", "1.9e-5"]),
        ((1000, 300000), ["1000", "3000", "10000", "30000", "1e5", "3e5"]),
        ((8, 8), ["8"]),
    ],
)
def test_log_axes_have_labels_at_any_scale(ends: tuple[float, float], labels: list[str]) -> None:
    study = optuna.create_study(direction="maximize")
    space: dict[str, BaseDistribution] = {
        "size": FloatDistribution(*ends, log=True),
        "rate": FloatDistribution(1e-9, 1, log=True),
    }
    for value in ends:
        study.add_trial(create_trial(value=0.5, params={"size": value, "rate": 1e-7}, distributions=space))
    (slices,) = (p for p in search_pictures(study, metric=METRIC, rungs=(1.0,), winner=None) if p.title == "Slices")
    assert f'"ticktext":{json.dumps(labels, separators=(",", ":"))}' in slices.html
    assert '"ticktext":["1e-7"]' in slices.html  # an axis has the ticks of its own values


def test_seeds_show_scores_mean_and_bound() -> None:
    seeds = [SeedScore(seed=42, dev=0.61), SeedScore(seed=43, dev=0.63)]
    picture = seeds_picture([Finalist(trial=7, seeds=seeds, dev_mean=0.62, dev_lower=0.55)], 0.6, METRIC)
    for shown in ("trial 7", "[0.61,0.63]", "[0.55,0.62]", "seed 43"):
        assert shown in picture.html
    assert not seeds_picture([], 0.6, METRIC).html
