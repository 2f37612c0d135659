"""What a search keeps on disk, with sizes that can be checked by hand: a model of 1,000 bytes."""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.fake import METRIC
from trainables.config import TrialConfig
from trainables.files import files_in, new_folder
from tuner.errors import RequestError
from tuner.interrupts import SearchStopped
from tuner.request.config import SearchConfig
from tuner.schedule.disk import (
    TrialFolders,
    fit_to_disk,
    search_bytes,
    stored_dtype,
    token_bytes,
    trial_bytes,
    weights_bytes,
)


def test_sizes() -> None:
    """A trial: two copies of the weights, and three states of 14 bytes a parameter of 4. A search: kept + bundle."""
    assert trial_bytes(1000) == 2000 + 3 * 3500
    assert search_bytes(SearchConfig(concurrent_trials=2), 1000, kept=4) == 4000 + 1000 + 2 * 12500


def test_token_ids_of_a_corpus_are_counted(tmp_path: Path) -> None:
    """Four bytes a token: of 3 passages in 60 bytes of text there are at most 60, at 8 tokens a passage 24."""
    (tmp_path / "corpus.jsonl").write_text('{"_id": "0000", "a"}\n' * 3)
    assert token_bytes(tmp_path, 128) == 4 * 63
    assert token_bytes(tmp_path, 8) == 4 * 24
    assert token_bytes(tmp_path / "nowhere", 8) == 0
    assert search_bytes(SearchConfig(), 1000, kept=4, tokens=96) == 4000 + 1000 + 12500 + 96
    config = SearchConfig(disk_budget="17000", finalists=1)
    assert fit_to_disk(config, 1000, tmp_path, tokens=1000)[0].keep_checkpoints == 1
    with pytest.raises(RequestError, match="the bundle and token ids"):
        fit_to_disk(config, 1000, tmp_path, tokens=3000)


def test_token_ids_are_part_of_what_the_budget_holds(tmp_path: Path) -> None:
    folders = TrialFolders(tmp_path / "trials", trial_bytes=100, budget=150)
    (tmp_path / "data" / "tokens" / "0a").mkdir(parents=True)
    assert folders.shortage(0) is None
    (tmp_path / "data" / "tokens" / "0a" / "ids.npy").write_bytes(b"0" * 51)
    assert "--disk_budget is 0.0 MB" in str(folders.shortage(0))


@pytest.mark.parametrize(
    ("text", "size"), [("200GB", 200e9), ("1.5TB", 1.5e12), ("64GiB", 64 * 2**30), ("10m", 1e7), ("512", 512)]
)
def test_budgets_as_people_write_them(text: str, size: float) -> None:
    assert SearchConfig(disk_budget=text).disk_budget_bytes == size


def test_a_budget_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="--disk_budget: must be a size such as 50GB"):
        SearchConfig(disk_budget="much")


def test_weights_are_counted_once(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"0" * 30)
    assert weights_bytes(tmp_path) == 30
    (tmp_path / "model-1.safetensors").write_bytes(b"0" * 10)
    (tmp_path / "model-2.safetensors").write_bytes(b"0" * 15)
    assert weights_bytes(tmp_path) == 25
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    assert weights_bytes(tmp_path) == 50  # trials write float32


@pytest.mark.parametrize(("stored", "named"), [(torch.float16, "float32"), (torch.float32, "float16")])
def test_weights_themselves_say_their_precision(stored: torch.dtype, named: str, tmp_path: Path) -> None:
    """transformers loads what is stored, whatever config.json says."""
    (tmp_path / "config.json").write_text(json.dumps({"dtype": named}))
    save_file({"weight": torch.zeros(1000, dtype=stored)}, tmp_path / "model.safetensors")
    assert stored_dtype(tmp_path) == str(stored).removeprefix("torch.")
    assert 4000 <= weights_bytes(tmp_path) <= 4400


def test_fewer_checkpoints_are_kept_to_stay_within_the_budget(tmp_path: Path) -> None:
    """The bundle and one running trial take 13,500 bytes; 17,000 leave 3 checkpoints, the user's own one of them."""
    config = SearchConfig(disk_budget="17000", keep_checkpoints=5, finalists=1)
    fitted, warnings = fit_to_disk(config, 1000, tmp_path)
    assert fitted.keep_checkpoints == 2
    assert warnings == ["--disk_budget 17000 is 0.0 MB: 2 checkpoints are kept instead of 5"]
    assert fit_to_disk(SearchConfig(disk_budget="30KB"), 1000, tmp_path)[1] == []


def test_a_budget_that_holds_no_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--disk_budget 13KB must hold 0.0 MB \(2 checkpoints"):
        fit_to_disk(SearchConfig(disk_budget="13KB", finalists=1), 1000, tmp_path)


def test_a_disk_that_holds_no_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"the free space of {tmp_path} must hold"):
        fit_to_disk(SearchConfig(), 10**15, tmp_path)


@pytest.mark.parametrize(
    ("left", "changes"),
    [
        ("trials", {"resume": "run"}),
        (".replaced/trials", {"replace_search": True}),
        ("trials", {"replace_search": True}),
        (".replaced/trials", {}),
    ],
    ids=["resumed", "to be deleted", "to be deleted, in a dry run", "to be kept"],
)
def test_what_an_earlier_search_left_counts_as_free_where_it_goes(
    left: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """15,500 bytes are needed: the bundle, one running trial and two checkpoints; 11,000 are free, 5,000 are held."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=11_000))
    config = SearchConfig(keep_checkpoints=1, finalists=1, concurrent_trials=1, **changes)
    with pytest.raises(RequestError, match="the free space"):
        fit_to_disk(config, 1000, tmp_path)
    (tmp_path / left / "0000").mkdir(parents=True)
    (tmp_path / left / "0000" / "weights").write_bytes(b"0" * 5_000)
    with nullcontext() if changes else pytest.raises(RequestError, match="the free space"):
        assert fit_to_disk(config, 1000, tmp_path) == (config, [])


def _folder(trials: Path, name: str) -> None:
    for part in ("checkpoint", "resume"):
        (trials / name / part).mkdir(parents=True)
        (trials / name / part / "weights").write_bytes(os.urandom(500))


def _scoring(name: str) -> TrialConfig:
    return TrialConfig(name=name, directory="", arguments={}, eval_data="", metric=METRIC)


def test_weights_of_the_best_and_states_of_the_living_stay(tmp_path: Path) -> None:
    for name in ("0001", "0002", "0003"):
        _folder(tmp_path, name)
    TrialFolders(tmp_path).keep({"0001"}, {"0002"})
    kept = {str(path.relative_to(tmp_path).parent) for path in tmp_path.rglob("weights")}
    assert kept == {"0001/checkpoint", "0002/checkpoint", "0002/resume"}


def test_what_broken_saves_left_of_ended_trials_goes(tmp_path: Path) -> None:
    for name in ("0001", "0002"):
        for folder in (".checkpoint.tmp", ".checkpoint.old", "checkpoint", "resume/.50.tmp"):
            (tmp_path / name / folder).mkdir(parents=True)
    TrialFolders(tmp_path).keep(set(), alive={"0002"})
    assert list((tmp_path / "0001").iterdir()) == []
    assert len(list((tmp_path / "0002").iterdir())) == 4
    TrialFolders(tmp_path).keep({"0002"}, alive=set())
    assert [path.name for path in (tmp_path / "0002").iterdir()] == ["checkpoint"]


def test_what_others_put_beside_the_weights_stays(tmp_path: Path) -> None:
    with new_folder(tmp_path / "0001" / "checkpoint") as folder:
        (folder / "weights").write_bytes(b"0")
    (tmp_path / "0001" / "checkpoint" / "onnx").mkdir()
    (tmp_path / "0001" / "checkpoint" / "onnx" / "model.onnx").write_text("the user's own")
    TrialFolders(tmp_path).keep(set(), set())
    assert files_in(tmp_path) == {"0001/checkpoint/onnx/model.onnx"}


def test_a_trial_is_not_started_beyond_the_budget(tmp_path: Path) -> None:
    trials = tmp_path / "trials"
    folders = TrialFolders(trials, trial_bytes=1500, budget=3000)
    assert folders.shortage(running=0) is None
    for name in ("0001", "0002"):
        folders.opened(_scoring(name))
        _folder(trials, name)
    shortage = folders.shortage(running=0)
    assert shortage is not None
    assert "--disk_budget is 0.0 MB" in shortage
    folders.keep({"0001"}, set())
    assert folders.shortage(running=0) is None


def test_what_could_not_be_written_is_tried_again_after_a_pause_and_not_for_ever(tmp_path: Path) -> None:
    now = 0.0
    folders = TrialFolders(tmp_path / "trials", clock=lambda: now)
    for _ in range(301):
        folders.refused()
        assert folders.shortage(running=1) is not None
        now += 6
        assert folders.shortage(running=1) is None
    folders.refused()
    with pytest.raises(SearchStopped, match="no room on the disk"):
        folders.shortage(running=0)
    folders.wrote()
    assert folders.shortage(running=0) is None
