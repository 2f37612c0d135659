"""What a trial leaves in the process: nothing."""

import logging
import os
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from deepspeed.ops.op_builder.fused_adam import FusedAdamBuilder
from transformers import TrainingArguments, training_args

from trainables.process import (
    forget,
    name_architectures_plainly,
    process_group,
    rank,
    remove_stale_build_locks,
    trial_process,
    world_size,
)


def test_environment_handlers_and_determinism_are_restored(tmp_path: Path) -> None:
    def trial() -> None:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        torch.use_deterministic_algorithms(True)
        logging.getLogger("somewhere").info("said in the trial")
        raise RuntimeError("an error of the trial")

    before, handlers = dict(os.environ), logging.getLogger().handlers[:]
    with pytest.raises(RuntimeError, match="of the trial"), trial_process(tmp_path / "log.txt"):
        trial()
    assert dict(os.environ) == before
    assert logging.getLogger().handlers == handlers
    assert not torch.are_deterministic_algorithms_enabled()
    assert "said in the trial" in (tmp_path / "log.txt").read_text()


def test_a_trial_in_tf32_leaves_the_next_one_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_args, "is_torch_tf32_available", lambda: True)
    before = torch.backends.cuda.matmul.fp32_precision
    with trial_process(tmp_path / "log.txt"):
        TrainingArguments(output_dir=str(tmp_path), tf32=True)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == before


class Activations:
    """What a failed step holds."""


def test_what_a_failed_attempt_held_is_given_back() -> None:
    """Through its traceback an exception holds every local of the step, also those of what it came from."""
    alive: list[weakref.ref[Activations]] = []

    def step() -> None:
        activations = Activations()
        alive.append(weakref.ref(activations))
        raise RuntimeError("out of memory")

    def trial() -> None:
        model = Activations()
        alive.append(weakref.ref(model))
        try:
            step()
        except RuntimeError as error:
            raise ValueError("the engine stopped") from error

    try:
        trial()
    except ValueError as error:
        assert all(each() is not None for each in alive)
        forget(error)
        assert [each() for each in alive] == [None, None]


def test_a_lone_process_gets_a_group_for_the_block() -> None:
    before = dict(os.environ)
    assert (rank(), world_size()) == (0, 1)
    with process_group():
        assert dist.get_world_size() == 1
        with process_group():
            assert dist.is_initialized()
        assert dist.is_initialized()
    assert not dist.is_initialized()
    assert dict(os.environ) == before


def test_a_lone_process_s_group_listens_on_loopback_only() -> None:
    """torch's own store would listen on every interface, whatever MASTER_ADDR says, and let anybody read and write."""
    before = _listening()
    with process_group():
        dist.all_reduce(torch.ones(1))
        new = _listening() - before
        assert {ip for ip, _ in new} <= {"127.0.0.1"}
        with socket.socket() as stranger, pytest.raises(OSError):
            stranger.connect(("127.0.0.1", int(os.environ["MASTER_PORT"])))


def _listening() -> set[tuple[str, int]]:
    sockets = psutil.Process().net_connections("inet")
    return {(one.laddr.ip, one.laddr.port) for one in sockets if one.status == psutil.CONN_LISTEN}


def test_two_workers_of_one_machine_meet_in_a_file_and_over_loopback(tmp_path: Path) -> None:
    code = (
        "import sys, psutil, torch, torch.distributed as dist\n"
        "from pathlib import Path\n"
        "from trainables.loopback import join_on_this_machine\n"
        "join_on_this_machine('gloo', Path(sys.argv[1]), int(sys.argv[2]), 2, 60.0)\n"
        "total = torch.ones(1)\n"
        "dist.all_reduce(total)\n"
        "said = [None, None]\n"
        "dist.all_gather_object(said, f'worker {dist.get_rank()}')\n"
        "sockets = psutil.Process().net_connections('inet')\n"
        "print(total.item(), said, sorted({s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN}))\n"
        "dist.barrier()\n"
        "dist.destroy_process_group()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "meeting")]
    workers = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    said = [worker.communicate(timeout=120)[0].strip() for worker in workers]
    assert said == ["2.0 ['worker 0', 'worker 1'] ['127.0.0.1']"] * 2


def test_no_variable_is_ever_missing_while_the_environment_is_restored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Other threads read credentials meanwhile."""
    touched: list[str] = []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("CHANGED_IN_A_TRIAL", "before")

    class Watched(dict[str, str]):
        def __setitem__(self, name: str, value: str) -> None:
            touched.append(name)
            super().__setitem__(name, value)

        def __delitem__(self, name: str) -> None:
            touched.append(name)
            super().__delitem__(name)

        def clear(self) -> None:
            touched.extend(self)
            super().clear()

        def update(self, *others: dict[str, str]) -> None:  # type: ignore[override]
            for name, value in others[0].items():
                self[name] = value

    with trial_process(tmp_path / "log.txt"):
        os.environ["CHANGED_IN_A_TRIAL"] = "in the trial"
        os.environ["OF_A_TRIAL"] = "1"
        watched = Watched(os.environ)
        monkeypatch.setattr(os, "environ", watched)
    assert sorted(touched) == ["CHANGED_IN_A_TRIAL", "OF_A_TRIAL"]
    assert (watched["CHANGED_IN_A_TRIAL"], "OF_A_TRIAL" in watched) == ("before", False)


def test_only_locks_of_killed_builds_are_removed(tmp_path: Path) -> None:
    old, new = (tmp_path / "py311_cpu" / name / "lock" for name in ("fused_adam", "shm_comm"))
    for lock in (old, new):
        lock.parent.mkdir(parents=True)
        lock.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    remove_stale_build_locks(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize(
    ("listed", "compiled"),
    [("9.0a", "9.0+PTX"), ("8.6 9.0a+PTX", "8.6;9.0+PTX"), ("12.0f;12.1+PTX", "12.0;12.1+PTX")],
)
def test_deepspeed_can_read_the_architectures_that_pytorch_can(
    listed: str, compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    builder = FusedAdamBuilder()
    builder.jit_mode = True
    with pytest.raises(ValueError, match="invalid literal"):
        builder.compute_capability_args()
    name_architectures_plainly()
    builder.compute_capability_args()  # writes down what it has read
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == compiled
