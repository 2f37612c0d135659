"""Two workers (gloo, on the CPU): losses against upstream's, whole trials, and DeepSpeed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import trainables
from tests.support.m3_fixtures import make_inputs, unified_arguments
from tests.support.tensors import tensor_hash
from trainables.config import TrialConfig

STEPS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workers")
    return make_inputs(root, rows=48)


def arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    own = {"per_device_train_batch_size": 3, "max_steps": 6, "use_self_distill": True}
    return unified_arguments(folder) | own | changes


def work(job: dict[str, Any], folder: Path, workers: int = 2) -> list[dict[str, Any]]:
    """Runs a job on a group of workers to its end; returns the result of each."""
    codes, errors = ended(job, folder, workers)
    assert codes == [0] * workers, errors[0][-3000:]
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(workers)]


def ended(job: dict[str, Any], folder: Path, workers: int = 2) -> tuple[list[int], list[str]]:
    """Runs a job on a group of workers; returns exit code and standard error of each."""
    folder.mkdir(exist_ok=True)
    (folder / "job.json").write_text(json.dumps({**job, "folder": str(folder)}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank in range(workers):
        group = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.support.m3_worker", str(folder / "job.json")]
        environment = {**os.environ, **address, **group}
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate()[1] for process in processes]
    return [process.returncode for process in processes], errors


def check_losses(values: dict[str, Any], folder: Path) -> None:
    results = work({"arguments": {**values, "max_steps": STEPS}}, folder)
    for result in results:
        assert len(result["ours"]) >= STEPS
        assert result["ours"] == pytest.approx(result["upstream"], rel=1e-9)
        assert result["gradient"] < 1e-9
    assert results[0]["ours"] != results[1]["ours"]


@pytest.mark.integration
def test_negatives_across_two_workers(folder: Path, tmp_path: Path) -> None:
    """Also in sub-batches, which upstream cannot do."""
    check_losses(arguments(folder, negatives_cross_device=True, sub_batch_size=2), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"same_dataset_within_batch": True}, {"gradient_accumulation_steps": 2}, {"per_device_train_batch_size": 5}],
    ids=["unified", "same dataset", "accumulation", "uneven last batch"],
)
def test_losses_of_two_workers(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    check_losses(arguments(folder, **changes), tmp_path)


def run_trial(
    folder: Path, place: Path, killed_after: int | None = None, **changes: Any
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Runs a trial on two workers, which are killed in the step after `killed_after` and started again."""
    place.mkdir()
    config = TrialConfig(
        name="0007",
        directory=str(place / "trials" / "0007"),
        arguments=arguments(folder, **changes),
        eval_data=str(folder / "eval"),
        metric="dense.ndcg_at_10",
        rungs=(0.5, 1.0),
    )
    if killed_after is not None:
        codes, _ = ended({"trial": config.to_dict(), "killed_after": killed_after}, place / "job")
        assert codes == [-signal.SIGKILL] * 2
        assert (Path(config.directory) / "resume" / f"{killed_after:09d}" / "manifest.json").is_file()
    results = work({"trial": config.to_dict()}, place / "job")
    assert results[0] == results[1]
    return results[0]["reports"], load_file(Path(config.directory) / "checkpoint" / "model.safetensors")


def deepspeed_config(stage: int) -> dict[str, Any]:
    stage0: dict[str, Any] = json.loads((Path(trainables.__path__[0]) / "ds_stage0.json").read_text())
    return {**stage0, "zero_optimization": {"stage": stage}}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_zero_trains_as_two_workers_without_it(folder: Path, tmp_path: Path) -> None:
    reports, weights = run_trial(folder, tmp_path / "plain", warmup_steps=0.1)
    for stage in (1, 2):
        config = deepspeed_config(stage)
        found, other = run_trial(folder, tmp_path / str(stage), warmup_steps=0.1, deepspeed=config)
        assert [report["step"] for report in found] == [report["step"] for report in reports]
        assert found[-1]["loss"] == pytest.approx(reports[-1]["loss"], rel=0.05)
        assert other.keys() == weights.keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [None, 0, 1, 2], ids=["plain", "stage 0", "stage 1", "stage 2"])
def test_two_workers_killed_and_resumed_equal_straight(folder: Path, tmp_path: Path, stage: int | None) -> None:
    """The optimizer's state is in as many parts as there are workers; the second half starts from all of them."""
    changes: dict[str, Any] = {"warmup_steps": 0.1, "negatives_cross_device": True}
    if stage is not None:
        changes["deepspeed"] = deepspeed_config(stage)
    reports, weights = run_trial(folder, tmp_path / "straight", **changes)
    again, resumed = run_trial(folder, tmp_path / "killed", killed_after=2, **changes)
    assert again == reports
    assert tensor_hash(resumed) == tensor_hash(weights)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_machines_without_a_shared_disk_resume_from_the_first_ones(folder: Path, tmp_path: Path) -> None:
    """ZeRO's parts are brought to the first machine; object storage takes them from there to the next group's."""
    config = TrialConfig(
        name="0007",
        directory=str(tmp_path / "trial"),
        arguments=arguments(folder, deepspeed=deepspeed_config(1)),
        eval_data=str(folder / "eval"),
        metric="dense.ndcg_at_10",
        rungs=(0.5, 1.0),
    )
    job = {"trial": config.to_dict(), "own_directories": True}
    first, second = (tmp_path / f"trial-of-{rank}" for rank in range(2))
    straight = work(job, tmp_path / "straight")
    weights = load_file(first / "checkpoint" / "model.safetensors")
    for place in (first, second):
        shutil.rmtree(place)

    ended({**job, "killed_after": 2}, tmp_path / "killed")
    assert not list((second / "resume").iterdir())
    shutil.rmtree(second)
    shutil.copytree(first, second)
    assert work(job, tmp_path / "resumed") == straight
    assert tensor_hash(load_file(first / "checkpoint" / "model.safetensors")) == tensor_hash(weights)
