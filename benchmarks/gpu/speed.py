"""Steps a second, the share of the card's arithmetic, synchronisations, and memory against its estimate."""

import importlib
import json
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from transformers import AutoConfig, TrainerCallback

from benchmarks.gpu.bench import LONG, SHORT, Bench, Result, Trained

WAYS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours_stored": {"gradient_checkpointing": False},
    "ours_compiled": {"gradient_checkpointing": False, "torch_compile": True},
}
"""Ways in which we compute the user's steps: as asked, as where there is the memory, and as where it is long enough."""

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense 16-bit matrix arithmetic a second, by a part of the device's name (the makers' data sheets)."""


def _utilisation(bench: Bench, rate: float) -> float | None:
    name = torch.cuda.get_device_name() if bench.cuda else ""
    peak = next((flops for part, flops in PEAKS.items() if part in name), None)
    return round(6 * bench.sizes["large"].matrices * rate / peak, 4) if peak else None


def _figures(bench: Bench, trained: Trained) -> dict[str, Any]:
    return {
        "tokens_per_s": round(trained.rate),
        "s_per_step": round(trained.seconds, 4),
        "tokens": round(sum(trained.tokens) / len(trained.tokens)),
        "mfu": _utilisation(bench, trained.rate),
        "peak_gb": round(trained.peak / 1e9, 2),
    }


def _measure(bench: Bench, side: str, values: dict[str, Any]) -> dict[str, Any] | None:
    """Returns figures of a training, None where it does not fit; what ours took is kept for the check of estimates."""
    rows = 0

    def after(runner: Any) -> None:
        nonlocal rows
        rows = len(runner.model.model.get_input_embeddings().weight)

    try:
        trained = bench.train(side, values, after=after)
    except torch.OutOfMemoryError:
        bench.allocated()
        return None
    if side == "ours":
        with (bench.folder / "peaks.jsonl").open("a") as file:
            point = {"values": values, "peak": trained.peak, "tokens": max(trained.tokens)}
            point |= {"longest": trained.longest, "rows": rows}
            file.write(json.dumps(point) + "\n")
    return _figures(bench, trained)


def users_setting(bench: Bench) -> Result:
    """11: the user's setting, batch 2 x 8 at 512 tokens: at least 3 times FlagEmbedding's tokens a second."""
    found: Result = {}
    steps = 6 if bench.tiny else 14
    kinds = [(bench.precisions[0], SHORT), (bench.precisions[0], LONG), (bench.precisions[-1], SHORT)]
    for precision, median in dict.fromkeys(kinds):
        values = bench.users(precision=precision, median=median, max_steps=steps)
        sides = {"upstream": _measure(bench, "upstream", values)}
        sides |= {name: _measure(bench, "ours", {**values, **changes}) for name, changes in WAYS.items()}
        rates = {name: figures["tokens_per_s"] for name, figures in sides.items() if figures}
        ratio = max(rates.get(name, 0) for name in WAYS) / rates["upstream"]
        found[f"{precision} {median} words"] = {**sides, "ratio": round(ratio, 2)}
    return {"passed": bench.tiny or all(case["ratio"] >= 3 for case in found.values()), **found}


def best_batch(bench: Bench) -> Result:
    """12: each side's best batch: ours at least 3 times upstream's tokens a second, and 45 % of the card's peak."""
    precision = bench.precisions[0]
    most = 8 if bench.tiny else 64
    ways = {
        "upstream": ("upstream", {}, [4, 8, 16]),
        "ours_stored": ("ours", WAYS["ours_stored"], [8, 32, 64]),
        "ours_compiled": ("ours", WAYS["ours_compiled"], [32, 64, 96]),
        "ours": ("ours", {}, [32, 64]),
    }
    found: Result = {}
    best: dict[str, float] = {"upstream": 0.0, "ours": 0.0}
    for way, (side, changes, batches) in ways.items():
        for batch in batches:
            if batch > most:
                continue
            values = bench.users(
                precision=precision, max_steps=5 if bench.tiny else 9, per_device_train_batch_size=batch, **changes
            )
            figures = _measure(bench, side, values)
            found[f"{way} {batch}"] = figures or "out of memory"
            if figures is None:
                break
            best[side] = max(best[side], figures["tokens_per_s"])
    ratio, share = best["ours"] / best["upstream"], _utilisation(bench, best["ours"])
    passed = bench.tiny or (ratio >= 3 and (share or 0) >= 0.45)
    return {"passed": passed, "ratio": round(ratio, 2), "mfu": share, "products": _products(bench), **found}


def _products(bench: Bench) -> float | None:
    """Returns the share of the peak that the layers' matrix products alone reach, on 16,384 tokens."""
    size = bench.sizes["large"]
    tokens = 256 if bench.tiny else 16384
    dtype = torch.bfloat16 if bench.cuda else torch.float32
    hidden = torch.randn(tokens, size.hidden, device=bench.device, dtype=dtype)
    shapes = [(size.hidden, size.hidden)] * 4 + [(size.hidden, 4 * size.hidden), (4 * size.hidden, size.hidden)]
    weights = [torch.randn(*shape, device=bench.device, dtype=dtype) for shape in shapes]
    wide = hidden.repeat(1, 4)
    repeats = 3 * size.layers

    def once() -> None:
        for weight in weights:
            (hidden if weight.shape[0] == size.hidden else wide) @ weight

    once()
    if bench.cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        once()
    if bench.cuda:
        torch.cuda.synchronize()
    return _utilisation(bench, tokens / (time.perf_counter() - started))


class _Synchronisations(TrainerCallback):
    """Counts what waits for the device in step 4, by line; profiles step 6."""

    def __init__(self, bench: Bench) -> None:
        self._cuda = bench.cuda
        self.lines: Counter[str] = Counter()
        self.profile: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Begins to watch."""
        if state.global_step == 3:
            self._caught = warnings.catch_warnings(record=True)
            self._found = self._caught.__enter__()
            warnings.simplefilter("always")
            if self._cuda:
                torch.cuda.set_sync_debug_mode("warn")
        if state.global_step == 5:
            activities = [torch.profiler.ProfilerActivity.CPU]
            activities += [torch.profiler.ProfilerActivity.CUDA] if self._cuda else []
            self.profile = torch.profiler.profile(activities=activities)
            self.profile.__enter__()
            self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Ends it; runs before whoever waits for the device at a step's end."""
        if state.global_step == 4:
            if self._cuda:
                torch.cuda.set_sync_debug_mode("default")
            self._caught.__exit__(None, None, None)
            said = [each for each in self._found or [] if "called a synchronizing" in str(each.message)]
            self.lines.update(f"{Path(each.filename).name}:{each.lineno}" for each in said)
        if state.global_step == 6:
            if self._cuda:
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self._started
            self.profile.__exit__(None, None, None)

    def kernels(self) -> tuple[int, float]:
        """Returns how many kernels the profiled step ran, and their seconds."""
        events = [each for each in self.profile.events() if each.device_type == DeviceType.CUDA]
        return len(events), sum(each.device_time for each in events) / 1e6


def synchronisations(bench: Bench) -> Result:
    """10: a step waits for the device nowhere; kernels and the share of a step in which none runs."""
    found: Result = {}
    settings = {
        "users": bench.users(precision=bench.precisions[0], max_steps=7),
        "stored": bench.users(precision=bench.precisions[0], max_steps=7, gradient_checkpointing=False),
        "distillation": bench.users(
            precision=bench.precisions[0], max_steps=7, knowledge_distillation=True, kd_loss_type="kl_div"
        ),
    }
    for name, values in settings.items():
        watch = _Synchronisations(bench)
        bench.train("ours", values, before=lambda runner, watch=watch: runner.trainer.add_callback(watch))  # type: ignore[misc]
        count, busy = watch.kernels()
        idle = round(1 - busy / watch.seconds, 3)
        found[name] = {"synchronisations": dict(watch.lines), "kernels": count, "busy_s": busy, "idle": idle}
    waits = sum(sum(found[name]["synchronisations"].values()) for name in ("users", "stored"))
    return {"passed": waits == 0, **found}


def estimates(bench: Bench) -> Result:
    """16: the estimate of memory against what 11 and 12 took: never below, at most 15 % above."""
    try:
        memory: Any = importlib.import_module("trainables.memory.step")
    except ImportError:
        return {"passed": None, "note": "trainables.memory.step is not there"}
    path = bench.folder / "peaks.jsonl"
    points = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = []
    for point in points:
        values = point["values"]
        query, passage = point["longest"]
        if not passage:  # padded: what the encoder goes through is not known
            continue
        queries = values["per_device_train_batch_size"]
        texts = memory.Texts(
            queries=queries,
            passages=queries * values["train_group_size"],
            query_length=query,
            passage_length=passage,
            tokens=point["tokens"],
        )
        shape = memory.Shape.of(AutoConfig.from_pretrained(values["model_name_or_path"]))
        estimate = memory.memory(shape, values, texts=texts, reachable=point["rows"]).training
        found.append(
            {
                "batch": queries,
                "checkpointing": values["gradient_checkpointing"],
                "peak_gb": point["peak"] / 1e9,
                "estimate_gb": estimate / 1e9,
                "ratio": round(estimate / point["peak"], 3) if point["peak"] > 0 else None,
            }
        )
    passed = all(1 <= each["ratio"] <= 1.15 for each in found) if found and bench.cuda else None
    return {"passed": passed, "points": found}
