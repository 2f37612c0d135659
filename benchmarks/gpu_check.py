"""Checks the GPU path on a bare machine with one card: FlagEmbedding's losses, resume, memory, speed.

Needs torch, transformers, accelerate, sentence-transformers and a few wheels, but neither Ray, Optuna, mteb, DeepSpeed
nor a network. Models have random weights and are made on the spot. Each part has a limit; a process that hangs or whose
CUDA is beyond repair is replaced, and the parts that remain go on. Every part is a JSON line in the output as soon as
it ends; a table follows, and the exit code is 1 where a criterion is missed.

    pip download --no-deps --only-binary :all: --python-version 3.12 --implementation cp \\
        --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2010_x86_64 \\
        -d .carry/wheels FlagEmbedding==1.4.2 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 xxhash==4.1.0 \\
        psutil==7.2.2                                                  # here, 1.8 MB
    pip install --no-index --no-deps --target site .carry/wheels/*.whl   # there
    PYTHONPATH=site:. python benchmarks/gpu_check.py
    PYTHONPATH=site:. python benchmarks/gpu_check.py --only P,1,3,11 --seconds 150 --output results.jsonl
    python benchmarks/gpu_check.py --tiny                            # every part on a CPU: does it run?
"""

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HANG_SECONDS = 20.0
"""How long a part may go on over its limit before its process is killed."""

START_SECONDS = 120.0
"""Of a process, before its first part: imports."""

ROOM = 20e9
"""Bytes that models and checkpoints take at most: in memory, if it has so many."""

ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One check."""

    name: str
    title: str
    seconds: float
    """After which it is given up."""
    function: str
    """``module.function`` in `benchmarks.gpu`."""


PARTS = [
    Part(name="P", title="models and rows", seconds=90, function="prepare.prepare"),
    Part(name="1", title="losses, fp32", seconds=60, function="parity.losses_fp32"),
    Part(name="13", title="packed attention", seconds=20, function="operators.attention"),
    Part(name="3", title="losses, 16 bits", seconds=60, function="parity.losses_mixed"),
    Part(name="11", title="the user's setting", seconds=110, function="speed.users_setting"),
    Part(name="10", title="synchronisations", seconds=30, function="speed.synchronisations"),
    Part(name="12", title="best batch", seconds=110, function="speed.best_batch"),
    Part(name="4", title="determinism", seconds=25, function="parity.determinism"),
    Part(name="6", title="sub-batches", seconds=20, function="parity.sub_batches"),
    Part(name="5", title="resume", seconds=40, function="trials.resume"),
    Part(name="7", title="out of memory", seconds=70, function="trials.out_of_memory"),
    Part(name="8", title="many trials", seconds=45, function="trials.many"),
    Part(name="14", title="scoring", seconds=90, function="operators.scoring"),
    Part(name="16", title="memory estimate", seconds=10, function="speed.estimates"),
    Part(name="17", title="compiled layers", seconds=60, function="parity.compiled_layers"),
    Part(name="15", title="saving a state", seconds=30, function="trials.saving"),
    Part(name="9", title="vocabulary", seconds=15, function="parity.vocabulary"),
    Part(name="2", title="losses, fp64", seconds=25, function="parity.losses_fp64"),
]


class PartTimeout(Exception):  # noqa: N818
    """A part took longer than it may."""


def child(folder: Path, names: list[str], *, tiny: bool, deadline: float) -> None:
    """Does parts one after the other, and writes a line for each to ``results.jsonl`` in `folder`."""
    from benchmarks.gpu.bench import Bench

    bench = Bench(folder, tiny=tiny)
    signal.signal(signal.SIGALRM, _raise)
    for part in PARTS:
        if part.name not in names:
            continue
        left = deadline - time.time()
        _write(folder / "begun.jsonl", {"part": part.name, "time": time.time()})
        if left < min(part.seconds / 3, 10):
            _write(folder / "results.jsonl", {"part": part.name, "title": part.title, "error": "no time left"})
            continue
        result = _done(part, bench, min(part.seconds * (10 if tiny else 1), left))
        _write(folder / "results.jsonl", result)
        if "CUDA error" in str(result.get("error")):  # it may be beyond repair
            os._exit(3)


def _raise(*_: Any) -> None:
    raise PartTimeout("out of time")


def _done(part: Part, bench: Any, seconds: float) -> dict[str, Any]:
    started = time.perf_counter()
    module, _, function = part.function.partition(".")
    head = {"part": part.name, "title": part.title}
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        found = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(bench)
    except BaseException as error:  # a part that fails is a result
        text = "".join(traceback.format_exception(error, limit=-6))
        found = {"passed": False, "error": f"{type(error).__name__}: {error}", "traceback": text}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    bench.allocated()
    return {**head, "seconds": round(time.perf_counter() - started, 1), **found}


def _write(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line, default=str) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def supervise(folder: Path, output: Path, names: list[str], *, tiny: bool, deadline: float) -> list[dict[str, Any]]:
    """Runs the parts in a process, and what is left in another if that one ends or hangs; returns their results."""
    results = folder / "results.jsonl"
    for _ in range(6):
        done = {result["part"] for result in _read(results)}
        left = [name for name in names if name not in done]
        if not left or time.time() > deadline:
            break
        command = [sys.executable, __file__, "--child", str(folder), "--only", ",".join(left)]
        command += ["--seconds", str(deadline - time.time()), *(["--tiny"] if tiny else [])]
        search = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(command, env={**ENVIRONMENT, **os.environ, "PYTHONPATH": search})
        began = time.time()
        while process.poll() is None:
            time.sleep(0.5)
            _publish(results, output)
            if _hangs(folder, began, tiny=tiny) or time.time() > deadline + HANG_SECONDS:
                process.kill()
                process.wait()
        if begun := _read(folder / "begun.jsonl"):
            last = begun[-1]["part"]
            if last not in {result["part"] for result in _read(results)}:
                _write(results, {"part": last, "passed": False, "error": f"its process ended: {process.returncode}"})
        elif process.returncode:
            break
    _publish(results, output)
    return _read(results)


def _hangs(folder: Path, began: float, *, tiny: bool) -> bool:
    begun = [each for each in _read(folder / "begun.jsonl") if each["time"] >= began]
    if not begun:
        return time.time() - began > START_SECONDS * (10 if tiny else 1)
    done = {result["part"] for result in _read(folder / "results.jsonl")}
    last = begun[-1]
    limit = next(part.seconds for part in PARTS if part.name == last["part"]) * (10 if tiny else 1)
    return last["part"] not in done and time.time() - last["time"] > limit + HANG_SECONDS


def _publish(results: Path, output: Path) -> None:
    """Copies what is new, and prints it."""
    known = len(_read(output))
    for result in _read(results)[known:]:
        _write(output, result)
        print(json.dumps(result, default=str), flush=True)


def table(results: list[dict[str, Any]]) -> str:
    """Returns a line a part."""
    words = {True: "passed", False: "MISSED", None: "-"}
    lines = [f"{'part':>4}  {'':20}  {'':7}  seconds"]
    for result in results:
        word = words[result.get("passed")]
        title, seconds, error = (result.get(name, "") for name in ("title", "seconds", "error"))
        lines.append(f"{result['part']:>4}  {title:20}  {word:7}  {seconds}  {error}")
    return "\n".join(lines)


def main() -> None:
    """Runs the checks asked for."""
    deadline = time.time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of parts, with commas; P is needed by none, and tells of the machine")
    parser.add_argument("--seconds", type=float, default=450.0, help="start nothing after so long")
    parser.add_argument("--output", type=Path, help="default: results.jsonl in $OUT, or in the current folder")
    parser.add_argument("--tiny", action="store_true", help="tiny models, so that a CPU does every part")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    deadline += arguments.seconds
    names = arguments.only.split(",") if arguments.only else [part.name for part in PARTS]
    if unknown := sorted(set(names) - {part.name for part in PARTS}):
        parser.error(f"--only must name parts ({', '.join(part.name for part in PARTS)}), but got {', '.join(unknown)}")
    if arguments.child:
        child(arguments.child, names, tiny=arguments.tiny, deadline=deadline)
        return
    output = arguments.output or Path(os.environ.get("OUT", ".")) / "results.jsonl"
    output.unlink(missing_ok=True)
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    with tempfile.TemporaryDirectory(dir=memory if roomy else None, ignore_cleanup_errors=True) as folder:
        results = supervise(Path(folder), output, names, tiny=arguments.tiny, deadline=deadline)
    print(table(results))
    sound = {each["part"] for each in results if each.get("passed") is not False and "error" not in each}
    sys.exit(0 if sound.issuperset(names) else 1)


if __name__ == "__main__":
    main()
