"""What the pictures of a page hold, and what they leave out."""

import re

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from tuner.report.drawing import Axis, Drawing, apart, counted, linear, logarithmic
from tuner.report.figures import FEWEST_FOR_IMPORTANCE, search_pictures, seeds_picture
from tuner.report.scene import Picture, Scene
from tuner.report.standings import standings
from tuner.verdict.result import Finalist, SeedScore

METRIC = "dense.ndcg_at_10"


def _pictures(
    trained: int, *, winner: int | None = None, choice: str = "linear", worst: float = 0.6, failed: bool = False
) -> dict[str, Picture]:
    """Pictures of a search with the base model and `trained` trials of two parameters."""
    study = optuna.create_study(direction="maximize")
    study.add_trial(create_trial(value=0.6, user_attrs={"role": "base"}))
    space = {
        "learning_rate": FloatDistribution(1e-6, 1e-4, log=True),
        "schedule": CategoricalDistribution((choice, "x")),
    }
    for number in range(trained):
        params = {"learning_rate": 10.0 ** -(4.5 + number % 2), "schedule": choice if number % 3 else "x"}
        values = {1: 0.5 + number / 100, 2: worst if number == 0 else 0.6 + number / 100}
        trial = create_trial(value=values[2], params=params, distributions=space, intermediate_values=values)
        study.add_trial(trial)
    if failed:
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"error": "out of memory"}))
    scene = Scene(trials=standings(study.trials), metric=METRIC, rungs=(0.5, 1.0), best=winner, error=(0.01, 100))
    return {picture.title: picture for picture in search_pictures(study, scene)}


def test_too_few_trials_are_said_and_not_drawn() -> None:
    pictures = _pictures(FEWEST_FOR_IMPORTANCE - 1)
    assert not pictures["Importance of each parameter"].html
    said = pictures["Importance of each parameter"].caption
    assert said == "Needs at least 6 trials that were trained to their end; there are 5."
    assert _pictures(FEWEST_FOR_IMPORTANCE)["Importance of each parameter"].html
    assert not _pictures(4)["Parallel coordinates"].html
    assert _pictures(5)["Parallel coordinates"].html
    untrained = _pictures(0)
    assert not untrained["Slices"].html
    assert untrained["Rungs and stopped trials"].caption == "No trial has reached its first rung."


def test_the_base_model_is_in_the_history_and_not_among_the_parallel_lines() -> None:
    pictures = _pictures(5)
    assert str(pictures["History"].html).count('class="mark') == 6
    assert "base model: 0.6000 complete" in pictures["History"].html
    assert str(pictures["Parallel coordinates"].html).count("trial ") == 5
    assert "base model" not in pictures["Parallel coordinates"].html


def test_the_best_alone_is_blue() -> None:
    for picture in _pictures(6, winner=3).values():
        blue = re.findall(r'class="mark \w+ best( small)?"><title>([^:]+):', str(picture.html))
        assert {title for _, title in blue} <= {"trial 3"}
    assert 'class="mark dot best"' in _pictures(6, winner=3)["Slices"].html


def test_a_failed_trial_without_a_score_is_a_cross_at_the_foot() -> None:
    history = str(_pictures(2, failed=True)["History"].html)
    assert re.search(r'class="mark cross failed"><title>trial 3: failed</title><svg x="[\d.]+%" y="260.0"', history)


def test_a_trial_far_below_the_base_model_does_not_press_the_others_together() -> None:
    far = str(_pictures(3, worst=0.01)["Slices"].html)
    assert 'class="mark down done"><title>trial 1: 0.0100' in far
    assert ">0.0<" not in far.replace("</text>", "<")
    assert "mark down" not in _pictures(3)["Slices"].html


def test_rungs_are_named_by_their_share_of_the_examples() -> None:
    rungs = str(_pictures(3)["Rungs and stopped trials"].html)
    assert ">50%</text>" in rungs
    assert ">100%</text>" in rungs


def test_a_value_is_escaped_in_a_drawing() -> None:
    drawn = [str(picture.html) for picture in _pictures(6, choice="</svg><script>b").values()]
    assert not any("<script>" in html for html in drawn)
    assert any("&lt;/svg&gt;&lt;script&gt;b" in html for html in drawn)


def test_a_place_is_a_share_of_the_width_and_pixels_down() -> None:
    axis = Axis(low=0.0, high=10.0, ticks=[])
    drawing = Drawing(axis, axis, height=200, label="x")
    drawing.mark(2.5, 7.5, "dot", "done")
    assert '<svg x="25.00%" y="50.0">' in drawing.svg()
    assert Axis(low=1.0, high=100.0, ticks=[], log=True).share(10.0) == 0.5
    assert axis.share(11.0) == 1.0


def test_labels_do_not_cover_each_other() -> None:
    assert apart([10.0, 50.0, 12.0], gap=14) == [10.0, 50.0, 24.0]


@pytest.mark.parametrize(
    ("ends", "labels"),
    [
        ((4, 16), ["5", "10"]),  # of 1, 3, 10 and 30 only 10 lies between the ends
        ((8, 64), ["10", "30"]),
        ((0.4, 0.6), ["0.4", "0.5", "0.6"]),
        ((0.5, 30), ["1", "3", "10", "30"]),
        ((1e-6, 2e-5), ["1e-6", "3e-6", "1e-5"]),
        ((1.2e-5, 1.9e-5), ["1.2e-5", "1.9e-5"]),
        ((1000, 300000), ["1000", "3000", "10000", "30000", "1e5", "3e5"]),
        ((8, 8), ["8"]),
    ],
)
def test_log_axes_have_labels_at_any_scale(ends: tuple[float, float], labels: list[str]) -> None:
    assert [words for _, words in logarithmic(ends).ticks] == labels


def test_linear_axes_have_round_labels() -> None:
    assert [words for _, words in linear([0.61, 0.69]).ticks] == ["0.62", "0.64", "0.66", "0.68"]
    assert [words for _, words in counted(25).ticks] == ["0", "3", "6", "9", "12", "15", "18", "21", "24"]


def test_seeds_show_scores_mean_and_bound() -> None:
    seeds = [SeedScore(seed=42, dev=0.61), SeedScore(seed=43, dev=0.63)]
    row = Finalist(trial=7, seeds=seeds, dev_mean=0.62, dev_lower=0.55)
    picture = seeds_picture([row, Finalist(trial=8, seeds=seeds, dev_mean=0.62, dev_lower=None)], 0.6, METRIC)
    for shown in ("trial 7", "seed 43: 0.6300", "mean 0.6200", "lower bound 0.5500", "base model 0.6000"):
        assert shown in picture.html
    assert not seeds_picture([], 0.6, METRIC).html
    alone = seeds_picture([row], 0.6, METRIC)
    assert not alone.html
    assert alone.caption == (
        "Trial 7 was the only finalist: 0.6100 (seed 42), 0.6300 (seed 43) on dev; mean 0.6200, one-sided 95% lower "
        "bound 0.5500."
    )
