"""Whole trials on the device: interrupted, out of memory, many in a row, and what saving a state costs."""

import gc
import hashlib
import json
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch

from benchmarks.gpu.bench import METRIC, UNIFIED, Bench, Result
from trainables.config import TrialConfig, TrialInterrupted
from trainables.failures import failure_kind
from trainables.m3.runner import Model
from trainables.process import spare_what_is_kept
from trainables.scoring.scorer import Scorer
from trainables.trial.states import States
from trainables.trial.trial import run_trial

MEGABYTE = 2**20


def _trial(bench: Bench, name: str, values: dict[str, Any], rungs: tuple[float, ...] = (1.0,)) -> TrialConfig:
    """Returns a trial's configuration; what an earlier one of the name left is removed."""
    folder = bench.folder / "run" / "trials" / name
    shutil.rmtree(folder, ignore_errors=True)
    evaluation = str(bench.evaluation(24, 8))
    return TrialConfig(
        name=name, directory=str(folder), arguments=values, eval_data=evaluation, metric=METRIC, rungs=rungs
    )


def _losses(config: TrialConfig) -> list[float]:
    lines = (Path(config.directory) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def _weights(config: TrialConfig) -> str:
    return hashlib.sha256((Path(config.directory) / "checkpoint" / "model.safetensors").read_bytes()).hexdigest()


def resume(bench: Bench) -> Result:
    """5: stopped at step 4 of 8 and taken up: the same weights under full_determinism, losses within 1e-3 without."""
    found: Result = {}
    kinds = [(precision, True, False) for precision in bench.precisions]
    kinds += [(bench.precisions[0], False, compiled) for compiled in (False, True)]
    for precision, deterministic, compiled in kinds:
        values = bench.arguments(
            dropout=0.1, precision=precision, max_steps=8, full_determinism=deterministic, learning_rate=1e-4,
            torch_compile=compiled, **UNIFIED,
        )  # fmt: skip
        straight = _trial(bench, "straight", values, (0.5, 1.0))
        run_trial(straight, lambda _: True, bench.base)
        stopped = _trial(bench, "stopped", values, (0.5, 1.0))
        interrupted = False
        try:
            run_trial(stopped, lambda _: True, bench.base, progress=lambda step, _: step < 5)
        except TrialInterrupted:
            interrupted = True
        run_trial(stopped, lambda _: True, bench.base)
        difference = max(abs(a - b) for a, b in zip(_losses(straight), _losses(stopped), strict=True))
        equal = _weights(straight) == _weights(stopped)
        passed = interrupted and (equal if deterministic else difference <= 1e-3)
        name = f"{precision}{' deterministic' * deterministic}{' compiled' * compiled}"
        found[name] = {"equal": equal, "losses": difference, "passed": passed}
    return {"passed": all(case["passed"] for case in found.values()), **found}


@contextmanager
def _limit(bench: Bench, gigabytes: float) -> Any:
    """Lets PyTorch have so much of the device; on a CPU, nothing but sub-batches of 4 fit."""
    if bench.cuda:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    forward = Model.forward

    def limited(model: Any, *args: Any, **kwargs: Any) -> Any:
        if not 0 < (model.sub_batch_size or 0) <= 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, *args, **kwargs)

    with mock.patch.object(Model, "forward", limited):
        yield


def out_of_memory(bench: Bench) -> Result:
    """7: halved until it fits; each failure is known as one, leaves nothing, and the losses are those without limit."""
    values = bench.arguments(
        "large", precision=bench.precisions[0], per_device_train_batch_size=16, train_group_size=8, max_steps=2,
        **UNIFIED,
    )  # fmt: skip
    free = _trial(bench, "free", values)
    run_trial(free, lambda _: True, bench.base)
    before = bench.allocated()
    kinds: list[str] = []
    left: list[float] = []
    size = None
    with _limit(bench, 9.0):
        while True:
            tried = values if size is None else {**values, "sub_batch_size": size}
            limited = _trial(bench, "limited", tried)
            try:
                run_trial(limited, lambda _: True, bench.base)
                break
            except Exception as error:
                kinds.append(failure_kind(error))
                if kinds[-1] != "out_of_memory" or len(kinds) > 9:
                    raise
            spare_what_is_kept()
            left.append((bench.allocated() - before) / MEGABYTE)
            size = (size or 16 * 9) // 2
    losses = [_losses(config)[0] for config in (free, limited)]
    elsewhere = {name: _raised(bench, patch) for name, patch in _places().items()}
    sound = all(kind == "out_of_memory" and abs(leaked) <= 1 for kind, leaked in elsewhere.values())
    relative = abs(losses[0] - losses[1]) / abs(losses[0])
    return {
        "passed": sound and all(abs(leaked) <= 1 for leaked in left) and relative <= 1e-2,
        "kinds": kinds,
        "sub_batch_size": size,
        "left_mb": left,
        "losses": losses,
        "elsewhere": elsewhere,
    }


def _places() -> dict[str, Any]:
    error = torch.OutOfMemoryError("CUDA out of memory")
    return {
        "backward": mock.patch.object(torch.Tensor, "backward", side_effect=error),
        "scoring": mock.patch.object(Scorer, "score", side_effect=error),
    }


def _raised(bench: Bench, patch: Any) -> tuple[str, float]:
    """Returns the kind of failure, and the megabytes that it leaves."""
    config = _trial(bench, "raised", bench.arguments(max_steps=2, **UNIFIED))
    before = bench.allocated()
    kind = "none"
    with patch:
        try:
            run_trial(config, lambda _: True, bench.base)
        except Exception as error:
            kind = failure_kind(error)
            error.__traceback__ = None
    gc.collect()
    return kind, (bench.allocated() - before) / MEGABYTE


def many(bench: Bench) -> Result:
    """8: ten small trials and three large ones leave no memory behind; the fourth small one runs out of it."""
    process = psutil.Process()
    allocated: list[float] = []
    reserved: list[float] = []
    resident: list[float] = []
    for number in range(13):
        name, precision = ("small", "fp32") if number < 10 else ("large", bench.precisions[0])
        values = bench.arguments(name, precision=precision, max_steps=3, torch_compile=True, **UNIFIED)
        config = _trial(bench, f"{number:04d}", values)
        spare_what_is_kept()
        patch = _places()["backward"] if number == 3 else mock.MagicMock()
        with patch, suppress(torch.OutOfMemoryError):
            run_trial(config, lambda _: True, bench.base)
        del patch
        shutil.rmtree(config.directory)
        allocated.append(bench.allocated() / MEGABYTE)
        reserved.append((torch.cuda.memory_reserved() if bench.cuda else 0) / MEGABYTE)
        resident.append(process.memory_info().rss / MEGABYTE)
    grown = resident[9] - resident[2]
    sizes = (slice(0, 10), slice(10, 13))
    kept = all(max(allocated[size]) - allocated[size][0] <= 1 for size in sizes)
    passed = kept and all(max(reserved[size]) <= reserved[size][0] + 2 for size in sizes) and grown <= 50
    return {"passed": passed, "allocated_mb": allocated, "reserved_mb": reserved, "host_grown_mb": grown}


def saving(bench: Bench) -> Result:
    """15: seconds of one training state of the large model, in memory and on disk: `waits_s` are training's."""
    found: Result = {"passed": None}

    def after(runner: Any) -> None:
        config = _trial(bench, "saved", {})
        for place, parent in (("memory", bench.folder), ("disk", None)):
            with tempfile.TemporaryDirectory(dir=parent) as name:
                states = States(Path(name), config)
                found[f"{place}_waits_s"], found[f"{place}_s"] = _save(states, runner.trainer)
                found["bytes"] = sum(file.stat().st_size for file in Path(name).rglob("*") if file.is_file())

    bench.train("ours", bench.users(precision=bench.precisions[0], max_steps=2), after=after)
    return found


def _save(states: Any, trainer: Any) -> tuple[float, float]:
    """Returns seconds until training can go on, and until the state is whole."""
    started = time.perf_counter()
    if not hasattr(states, "capture"):
        states.save(2, trainer.save_state)
        return (time.perf_counter() - started,) * 2
    write = states.capture(2, trainer.capture_state)
    waited = time.perf_counter() - started
    write(lambda: False)
    return waited, time.perf_counter() - started
