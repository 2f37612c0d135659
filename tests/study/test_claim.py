"""What a search is over: its study says so, and is no other search's."""

from pathlib import Path

import pytest

from tests.support.fake import METRIC, open_study
from tuner.errors import RequestError
from tuner.request.config import SearchConfig
from tuner.study.claim import claim, require_untaken
from tuner.study.storage import open_storage


def test_a_search_does_not_go_on_over_other_data(tmp_path: Path) -> None:
    config = SearchConfig(num_trials=4)
    claim(open_study(config, tmp_path).search, {"data_hash": "aaaa", "metric": METRIC})
    claim(open_study(config, tmp_path).search, {"data_hash": "aaaa", "metric": METRIC})
    with pytest.raises(RequestError, match="data_hash was aaaa when the search began and is bbbb now"):
        claim(open_study(config, tmp_path).search, {"data_hash": "bbbb", "metric": METRIC})


def test_a_study_that_another_search_has_begun_is_not_taken(tmp_path: Path) -> None:
    config = SearchConfig(storage=f"sqlite:///{tmp_path}/studies.db", study_name="mine")
    storage = open_storage(config.storage, tmp_path)
    require_untaken(storage, "mine")
    study = open_study(config, tmp_path)
    require_untaken(storage, "mine")  # one that ended before its first trial
    study.ask()
    with pytest.raises(RequestError, match="--study_name mine: the storage has a study of that name with 1 trials"):
        require_untaken(open_storage(config.storage, tmp_path), "mine")
