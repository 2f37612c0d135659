from pathlib import Path

import pytest

from trainables.names import is_trial_file, mteb_file, scores_file, worker_log
from tuner.run_dir.names import (
    PREVIOUS_FOLDER,
    encoded_base_name,
    is_encoded_base,
    is_mixture,
    is_trial,
    mixture_name,
    part_name,
    retraining_name,
    trial_name,
    weights_of,
)
from tuner.run_dir.written import written

NAMES = [
    trial_name(7),
    trial_name(12345),
    retraining_name(7, 43),
    mixture_name(7, 0.5),
    encoded_base_name("1a2b3c4d5e"),
    PREVIOUS_FOLDER,
]


def test_every_job_has_a_name_of_its_own() -> None:
    assert NAMES == ["0007", "12345", "0007-seed43", "0007-alpha0.50", "0000-as-1a2b3c4d", "0000-previous"]
    assert all(map(is_trial, NAMES))
    assert [name for name in NAMES if is_mixture(name)] == ["0007-alpha0.50"]
    assert [name for name in NAMES if is_encoded_base(name)] == ["0000-as-1a2b3c4d"]
    assert part_name("0007") == "trials/0007"
    assert weights_of(Path("run"), 7) == Path("run/trials/0007/checkpoint")


@pytest.mark.parametrize("name", ["7", "0007-", "0007-seed", "0007-alpha1", "0000-as-", "notes", "0007 copy"])
def test_other_folders_are_nobodys(name: str) -> None:
    assert not is_trial(name)


def test_files_of_a_trial_are_known_and_others_are_not() -> None:
    files = [scores_file("dev"), scores_file("test"), mteb_file("SciFact"), worker_log(0), worker_log(3)]
    assert files == ["dev.json", "test.json", "mteb-SciFact.json", "log.txt", "log-3.txt"]
    assert all(map(is_trial_file, files))
    assert not any(map(is_trial_file, ["notes.txt", "dev.json.bak", "log-a.txt"]))


def test_scores_of_the_base_model_encoded_otherwise_go_with_their_search(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / "trials" / name).mkdir(parents=True)
        (tmp_path / "trials" / name / "dev.json").write_text("{}")
    assert written(tmp_path) == sorted(f"trials/{name}/dev.json" for name in NAMES)
