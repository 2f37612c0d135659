"""What is tried again, and what is not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainables.config import TrialConfig
from trainables.failures import SOUND, FailureKind, Planned, StorageAway, failure_kind
from tuner.cluster.slot import Slot, Slots, WorkerGroup
from tuner.schedule.retries import ATTEMPTS, Failure, Retries, Tries

ARGUMENTS = {"per_device_train_batch_size": 2, "train_group_size": 4}
CONFIG = TrialConfig(
    name="0002", directory="d", arguments=ARGUMENTS, eval_data="e", metric="dense.ndcg_at_10", rungs=(1.0,)
)


def _attempts(*failures: tuple[Any, str], retries: Retries | None = None, config: TrialConfig = CONFIG) -> int:
    """How many of the failures come about: each is the end of an attempt."""
    retries, tries = retries or Retries(), Tries()
    for number, (kind, message) in enumerate(failures, start=1):
        again = retries.next_attempt(config, tries, Failure(kind=kind, message=message))
        if again is None:
            return number
        config = again
    return len(failures) + 1


def test_the_same_error_twice_is_the_configurations_own() -> None:
    assert _attempts(*[("error", "ValueError: row 3")] * 5) == 2


def test_an_error_at_another_step_is_the_same_error() -> None:
    assert _attempts(("error", "RuntimeError: step 31 at 0x7f00"), ("error", "RuntimeError: step 32 at 0x7f11")) == 2


def test_what_failed_twice_in_two_trials_fails_at_once_in_the_next() -> None:
    """The second time is in a fresh process; once could be one machine's own fault."""
    retries = Retries()
    assert [_attempts(*[("error", "KeyError: 'x'")] * 5, retries=retries) for _ in range(3)] == [2, 2, 1]


def test_errors_that_differ_are_bounded() -> None:
    letters = "abcdefgh"
    assert _attempts(*[("error", f"OSError: {letter}") for letter in letters]) == ATTEMPTS + 1


def test_lost_workers_are_bounded_and_never_deterministic() -> None:
    retries = Retries()
    for _ in range(2):
        assert _attempts(*[("worker_lost", "killed")] * 9, retries=retries) == ATTEMPTS + 1


@pytest.mark.parametrize("kind", ["disk_full", "storage", "no_resources"])
def test_what_the_machine_lacks_is_waited_for(kind: FailureKind) -> None:
    assert _attempts(*[(kind, "none")] * 20) == 21


def test_nan_is_not_tried_again() -> None:
    assert _attempts(("non_finite", "NaN")) == 1


def test_out_of_memory_halves_the_sub_batch_down_to_one() -> None:
    """2 queries x 4 passages are 8: halved three times."""
    assert _attempts(*[("out_of_memory", "CUDA out of memory")] * 9) == 4


def test_a_step_that_does_not_get_what_it_was_planned_to_take_is_planned_in_less() -> None:
    """10 GB: the next attempt has 8.5, and so has every later trial; the smallest way is not tried again."""
    retries = Retries()
    assert retries.known(CONFIG).memory_limit is None
    planned = Planned(bytes=10e9, smallest=False)
    failure = Failure(kind="out_of_memory", message="CUDA out of memory", planned=planned)
    again = retries.next_attempt(CONFIG, Tries(), failure)
    assert again == replace(CONFIG, memory_limit=8.5e9)
    assert retries.known(replace(CONFIG, name="0003")).memory_limit == 8.5e9
    larger = replace(failure, planned=Planned(bytes=12e9, smallest=False))
    assert retries.next_attempt(CONFIG, Tries(), larger) == again  # was started before that was known
    assert retries.next_attempt(again, Tries(), replace(failure, planned=replace(planned, smallest=True))) is None


def test_scoring_that_runs_out_of_memory_is_tried_once_more() -> None:
    """It has no `sub_batch_size`, and has halved its own batches."""
    assert _attempts(*[("out_of_memory", "CUDA out of memory")] * 9, config=replace(CONFIG, rungs=())) == 2


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "out_of_memory"),
        ("CUDA error: out of memory", "out_of_memory"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "out_of_memory"),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", "out_of_memory"),
        ("CUDA driver error: out of memory", "out_of_memory"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "out_of_memory"),
        ("CUDA error: CUSPARSE_STATUS_ALLOC_FAILED when calling `cusparseCreate(handle)`", "out_of_memory"),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`", "worker_lost"),
        ("CUDA error: device-side assert triggered", "worker_lost"),
        ("CUDA error: an illegal memory access was encountered", "worker_lost"),
        ("CUDA error: uncorrectable ECC error encountered", "worker_lost"),
        ("[third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:3712", "worker_lost"),
        ("expected scalar type Float but found Half", "error"),
    ],
)
def test_errors_of_the_device_are_told_from_those_of_the_configuration(message: str, kind: FailureKind) -> None:
    assert failure_kind(RuntimeError(message)) == kind


class DistBackendError(RuntimeError):
    """As torch.distributed's."""


def test_nccl_without_memory_is_no_lost_worker() -> None:
    said = "NCCL error in: NCCLUtils.cpp:93, unhandled cuda error\nncclUnhandledCudaError: "
    full = DistBackendError(f"{said}Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'")
    assert failure_kind(full) == "out_of_memory"
    assert failure_kind(DistBackendError(f"{said}Cuda failure 719 'unspecified launch failure'")) == "worker_lost"


def test_out_of_memory_is_known_by_what_an_error_came_from() -> None:
    """DeepSpeed and Accelerate wrap what they meet; how the step was planned is found there as well."""
    cause = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    Planned(bytes=3e9, smallest=False).mark(cause)
    error = ValueError("the engine stopped")
    error.__cause__ = cause
    assert failure_kind(error) == "out_of_memory"
    assert Planned.of(error) == Planned(bytes=3e9, smallest=False)
    assert Planned.of(ValueError("row 3")) is None


def test_storage_that_is_away_is_told_from_a_full_disk() -> None:
    assert failure_kind(StorageAway("s3://bucket cannot be reached")) == "storage"
    assert failure_kind(StorageAway("[Errno 28] No space left on device")) == "disk_full"


@pytest.mark.parametrize(("kind", "ends"), [("error", True), ("worker_lost", True), *((kind, False) for kind in SOUND)])
def test_after_an_error_the_next_attempt_is_in_a_fresh_process(
    kind: FailureKind, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of CUDA stays with its process: every later trial would meet it there."""
    slot, ended = object.__new__(Slot), list[bool]()
    slot._slots = Slots(count=1, workers=1, cpus=1, gpus=1, folder=tmp_path)
    slot._group = WorkerGroup(slot._slots, lambda *_: None, None)
    monkeypatch.setattr(slot._group, "end_workers", lambda: ended.append(True))
    slot._after_failure(kind)
    assert ended == [True] * ends
