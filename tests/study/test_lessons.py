"""Earlier searches as priors: their best settings are drawn near, and are no trials of the search."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.fake import START, fake_train, new_study, open_agenda
from tests.support.storage_fixtures import stored
from tuner.cluster.executor import run_in_process
from tuner.errors import RequestError
from tuner.request.config import SearchConfig
from tuner.study.lessons import Lesson, read_lessons
from tuner.study.samplers import sampler_names
from tuner.study.storage import open_storage
from tuner.study.study import SearchStudy

BEST = {"learning_rate": 2e-6, "temperature": 0.01, "train_group_size": 2, "per_device_train_batch_size": 2}


def _earlier(folder: Path) -> Path:
    config = SearchConfig(num_trials=6, finalists=0, pruner="none", arguments={"model_name_or_path": "e5-small"})
    run_in_process(open_agenda(config, folder), fake_train)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    return folder


def test_a_lesson_is_the_best_of_an_earlier_search(tmp_path: Path) -> None:
    (lesson,) = read_lessons([str(_earlier(tmp_path))])
    assert (lesson.model, lesson.trials, len(lesson.params)) == ("e5-small", 5, 3)
    assert lesson.params[0]["learning_rate"] == START["learning_rate"]  # the optimum of the fake score
    assert lesson.gain == pytest.approx(0.2)
    assert f"learned from {tmp_path} (e5-small, 5 trials, best +0.2000 on its dev): " in lesson.sentence("tpe")


def test_a_lesson_is_read_from_storage_as_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    (tmp_path / "run").mkdir()
    stored(_earlier(tmp_path / "run"), url := f"file://{tmp_path}/bucket/run")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    (there,), (here,) = read_lessons([url]), read_lessons([str(tmp_path / "run")])
    assert there == replace(here, run_dir=url)
    with pytest.raises(RequestError, match=f"{url}-away"):
        read_lessons([f"{url}-away"])


def test_what_is_no_search_is_refused_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("num_trials: 3\n")
    with pytest.raises(RequestError) as refused:
        read_lessons([str(tmp_path / "away"), str(tmp_path)])
    assert len(refused.value.findings) == 2


def _opened(folder: Path, config: SearchConfig, lessons: Sequence[Mapping[str, Any]]) -> SearchStudy:
    from search_spaces import Context, load_search_space

    return SearchStudy(
        open_storage(None, folder),
        config,
        space=load_search_space("m3"),
        context=Context(rows=100_000, negatives=15, start=START),
        lessons=lessons,
    )


@pytest.mark.parametrize("sampler", sampler_names())
def test_it_is_said_whether_a_sampler_draws_near_a_lesson(sampler: str, tmp_path: Path) -> None:
    """One that does draws otherwise with it than without, from the same seed."""
    lesson = Lesson(run_dir="earlier", model="e5-small", trials=5, gain=0.2, params=(BEST,))
    drawn = []
    for name, lessons in (("without", []), ("with", [lesson.to_dict()])):
        (tmp_path / name).mkdir()
        study = _opened(tmp_path / name, SearchConfig(sampler=sampler, num_trials=31, seed=1), lessons)
        drawn.append([study.ask()[1] for _ in range(6)])
    said = "are drawn near, and" if drawn[0] != drawn[1] else f"are not used (--sampler {sampler} draws near nothing)"
    assert said in lesson.sentence(sampler)


LOWER_THIRD = 2e-6 * 25 ** (1 / 3)
"""Of the learning rates 2e-6 to 5e-5, on their log scale."""


@pytest.mark.parametrize("pruner", ["hyperband", "promotion"])
def test_an_earlier_value_outside_of_a_range_is_its_end_with_every_pruner(pruner: str, tmp_path: Path) -> None:
    """The learning rate 0 has no place on a log scale; hyperband shows samplers the trials of a bracket alone."""
    lessons: list[dict[str, object]] = [{"run_dir": "earlier", "params": [{"learning_rate": 0.0}]}]
    study = _opened(tmp_path, SearchConfig(num_trials=31, seed=1, pruner=pruner), lessons)
    drawn = [study.ask()[1] for _ in range(10)][2:]
    assert sum(params["learning_rate"] < LOWER_THIRD for params in drawn) >= 4


def test_first_trials_are_drawn_near_the_lessons_also_after_a_resume(tmp_path: Path) -> None:
    """The earlier best is at the lower end of every range: most of the first trials lie in the lower third."""
    lessons: list[dict[str, object]] = [{"run_dir": "earlier", "params": [BEST]}]
    config = SearchConfig(num_trials=31, seed=1)
    study = _opened(tmp_path, config, lessons)
    study.ask(), study.ask()
    drawn = []
    for number in range(8):
        study = _opened(tmp_path, config, []) if number == 4 else study  # the lessons are in the study
        while study.has_unfinished:
            study._unfinished.pop()
        drawn.append(study.ask()[1]["learning_rate"])
    assert sum(rate < LOWER_THIRD for rate in drawn) >= 4
    assert len(study.search.trials) == 10
    assert new_study(config, open_storage(None, tmp_path)).search.user_attrs["lessons"] == lessons
