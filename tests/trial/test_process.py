"""What a trial leaves in the process: nothing."""

import logging
import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from trainables.process import process_group, rank, remove_stale_build_locks, trial_process, world_size


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


def test_only_locks_of_killed_builds_are_removed(tmp_path: Path) -> None:
    old, new = (tmp_path / "py311_cpu" / name / "lock" for name in ("fused_adam", "shm_comm"))
    for lock in (old, new):
        lock.parent.mkdir(parents=True)
        lock.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    remove_stale_build_locks(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)
