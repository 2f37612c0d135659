"""Records tables of fine-tuned retrievers: many configurations of three tasks, scored at five points of training.

Each run is the product's own training of MiniLM, without Ray, Optuna or mteb, on a GPU if there is one. First
every configuration's full run with a linear schedule, then short runs with a schedule of their own, further seeds,
runs with a constant learning rate, and the last quarter of the configurations: a recording cut short is of use. What
is done stands in ``journal.jsonl`` in the output folder, and is not done again.

    python benchmarks/record_table.py --prepare .carry/record --datasets FOLDER    # once, where this is installed
    python benchmarks/record_table.py --data .carry/record --jobs 10 --seconds 270 # anywhere; goes on from there
    python benchmarks/record_table.py --data .carry/record --tiny                  # a minute on a CPU

FOLDER holds a BEIR folder with ``train.jsonl.xz`` for each of pubmedqa and nq_qed. The last line is JSON:
``{"runs", "of", "failed", "seconds", "seconds_a_run"}``.
"""

import argparse
import base64
import hashlib
import json
import multiprocessing
import os
import platform
import queue
import statistics
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record_data
from benchmarks.record_data import CONFIGURATIONS, RANGES, SEED, TASKS, WARMUP_RATIO, Job
from benchmarks.recorded_table import FRACTIONS, Floats, RecordedTable

SHORT = (1 / 16, 1 / 4)
CONSTANT = "constant_with_warmup"
GRACE_SECONDS = 45.0
"""How long runs that have begun may last when no new ones are started any more."""
SAVE_SECONDS = 30.0
MOST_FAILURES = 3
"""In a row, after which a process ends: its CUDA may be beyond repair."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many configurations, from the first on, get which runs."""

    configurations: int = CONFIGURATIONS
    first: int = 96
    """Full runs before all others."""
    short: int = 48
    seeds: int = 16
    """Two further full runs."""
    constant: int = 32


TINY = Counts(configurations=3, first=2, short=1, seeds=1, constant=1)


def jobs(counts: Counts) -> Iterator[Job]:
    """Yields all runs in the order in which they are worth having."""
    kinds: list[tuple[range, Mapping[str, Any]]] = [
        (range(-1, counts.first), {"seed": SEED}),
        *((range(counts.short), {"seed": SEED, "budget": budget}) for budget in SHORT),
        *((range(counts.seeds), {"seed": SEED + extra}) for extra in (1, 2)),
        (range(counts.constant), {"seed": SEED, "schedule": CONSTANT}),
        (range(counts.first, counts.configurations), {"seed": SEED}),
    ]
    for configurations, kind in kinds:
        for config in configurations:
            yield from (Job(task=task, config=config, **kind) for task in TASKS)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the processes of a recording share."""

    folder: Path
    """From `record_data.unpack`."""
    configurations: list[Mapping[str, Any]]
    rows: Mapping[str, int]
    deadline: float
    """Unix time from which on no run is started."""


def work(number: int, plan: Plan, todo: Any, done: Any) -> None:
    """Does jobs until there are none left, or it is too late to start another."""
    from benchmarks.record_run import Recorder

    recorder = Recorder(plan.folder, plan.folder / f"log-{number}.txt", plan.configurations, plan.rows)
    failures = 0
    while time.time() < plan.deadline and failures < MOST_FAILURES:
        try:
            job = todo.get(timeout=1)
        except queue.Empty:
            return
        began = time.perf_counter()
        try:
            scores = recorder.run(job)
        except Exception:
            done.put(asdict(job) | {"error": traceback.format_exc(limit=-3)})
            failures += 1
            continue
        failures = 0
        seconds = round(time.perf_counter() - began, 2)
        done.put(asdict(job) | {"seconds": seconds, "problem": recorder.problem} | _packed(scores))


def _packed(scores: Mapping[str, Floats]) -> dict[str, str]:
    return {split: base64.b64encode(values.tobytes()).decode() for split, values in scores.items()}


class Journal:
    """The runs that are done, in a file with one a line.

    Args:
        path: made by the first run.
        settings: what a run depends on beside its job; runs of others are left out.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self._path = path
        self._settings = settings
        if path.exists():  # a kill may have cut the last line short
            text = path.read_text("utf-8")
            path.write_text(text[: text.rfind("\n") + 1], "utf-8")
        found = list(record_data.read_jsonl(path)) if path.exists() else []
        self.runs = [run for run in found if run.pop("settings") == settings and "error" not in run]

    def add(self, run: dict[str, Any]) -> None:
        """Keeps a run."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run | {"settings": self._settings}) + "\n")
        self.runs.append(run)

    def holds(self, job: Job) -> bool:
        """Whether a job is done."""
        wanted = asdict(job)
        return any(wanted.items() <= run.items() for run in self.runs)

    def table(self, task: str, plan: Plan, meta: Mapping[str, Any]) -> RecordedTable | None:
        """Returns a task's table, None as long as the model before training is not scored."""
        queries = {split: len(record_data.queries_of(plan.folder / task, split)) for split in ("dev", "test")}
        own = [run for run in self.runs if run["task"] == task and "error" not in run]
        base = next((run for run in own if run["config"] < 0), None)
        runs = [run for run in own if run["config"] >= 0]
        if base is None:
            return None
        scores = {
            split: np.stack([_unpacked(run[split]) for run in (base, *runs)]).reshape(-1, len(FRACTIONS), count)
            for split, count in queries.items()
        }
        return RecordedTable(
            **{name: np.array([each[name] for each in plan.configurations]) for name in RANGES},
            config=np.array([run["config"] for run in runs], dtype=np.int64),
            seed=np.array([run["seed"] for run in runs], dtype=np.int64),
            budget=np.array([run["budget"] for run in runs], dtype=np.float64),
            schedule=np.array([run["schedule"] for run in runs], dtype=np.str_),
            fractions=np.array(FRACTIONS),
            dev=scores["dev"][1:],
            test=scores["test"][1:],
            base_dev=scores["dev"][0, -1],
            base_test=scores["test"][0, -1],
            meta={**meta, **_task_meta(task, plan), "seconds_a_run": _median(runs)},
        )


def _unpacked(text: str) -> Floats:
    return np.frombuffer(base64.b64decode(text), dtype=np.float16)


def _median(runs: list[dict[str, Any]]) -> float:
    return float(statistics.median([run["seconds"] for run in runs if run["budget"] == 1] or [0.0]))


def _task_meta(task: str, plan: Plan) -> dict[str, Any]:
    folder = plan.folder / task
    passages = record_data.count_lines(folder / "corpus.jsonl")
    return {"task": task, "rows": plan.rows[task], "passages": passages} | asdict(TASKS[task])


def record(plan: Plan, counts: Counts, output: Path, processes: int) -> dict[str, Any]:
    """Does what is not done yet, writes a table a task, and returns a summary."""
    began = time.perf_counter()
    tasks = {name: asdict(task) for name, task in TASKS.items()}
    settings = json.dumps([plan.configurations, dict(plan.rows), tasks, WARMUP_RATIO])
    journal = Journal(output / "journal.jsonl", hashlib.sha256(settings.encode()).hexdigest()[:16])
    missing = [job for job in jobs(counts) if not journal.holds(job)]
    meta: dict[str, Any] = {}
    failed = 0
    saved = time.perf_counter()
    for run in _results(plan, missing, processes):
        meta = meta or _meta(processes)  # imports torch, while the others do
        failed += "error" in run or bool(run.get("problem"))
        journal.add(run)
        _say(run, len(journal.runs), began)
        if time.perf_counter() - saved > SAVE_SECONDS:
            _save(journal, plan, meta, output)
            saved = time.perf_counter()
    _save(journal, plan, meta or _meta(processes), output)
    good = [run for run in journal.runs if "error" not in run]
    total = sum(1 for _ in jobs(counts))
    seconds = round(time.perf_counter() - began, 1)
    return {"runs": len(good), "of": total, "failed": failed, "seconds": seconds, "seconds_a_run": _median(good)}


def _say(run: Mapping[str, Any], count: int, began: float) -> None:
    name = f"{run['task']} {run['config']} seed {run['seed']} {run['budget']:.4g} {run['schedule']}"
    if "error" in run:
        print(f"{name}: {run['error']}", flush=True)
        return
    means = " ".join(f"{value:.3f}" for value in _unpacked(run["dev"]).reshape(len(FRACTIONS), -1).mean(1, float))
    seconds = f"{time.perf_counter() - began:.0f} s"
    print(f"{count} {seconds} {name}: {means} ({run['seconds']} s) {run['problem']}", flush=True)


def _save(journal: Journal, plan: Plan, meta: Mapping[str, Any], output: Path) -> None:
    for task in TASKS:
        table = journal.table(task, plan, meta)
        if table is not None:
            table.save(output / f"{task}.npz")


def _meta(processes: int) -> dict[str, Any]:
    import torch
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "model": "all-MiniLM-L6-v2, read from float16",
        "device": device,
        "matmul": "TF32" if torch.cuda.is_available() else "float32",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "processes": processes,
    }


def _results(plan: Plan, missing: list[Job], processes: int) -> Iterator[dict[str, Any]]:
    """Yields runs as they end; what hangs past the deadline is given up, and a process that dies loses its own."""
    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    for job in missing:
        todo.put(job)
    workers = [context.Process(target=work, args=(n, plan, todo, done), daemon=True) for n in range(processes)]
    for worker in workers:
        worker.start()
    try:
        while time.time() < plan.deadline + GRACE_SECONDS:
            alive = any(worker.is_alive() for worker in workers)
            try:
                yield done.get(timeout=1)
            except queue.Empty:
                if not alive:
                    return
    finally:
        for worker in workers:
            worker.kill()
        todo.cancel_join_thread()


def main() -> None:
    """Prepares, or records."""
    began = time.time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="write what a recording needs, and end")
    parser.add_argument("--datasets", type=Path, help="for --prepare: holds pubmedqa and nq_qed")
    parser.add_argument("--data", type=Path, help="what --prepare wrote")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "recorded")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with a run of its own")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run after so long")
    parser.add_argument("--tiny", action="store_true", help="a few short runs over a few rows")
    arguments = parser.parse_args()
    if arguments.prepare:
        if not arguments.datasets:
            parser.error("--prepare needs --datasets")
        record_data.prepare(arguments.prepare, arguments.datasets)
        return
    if not arguments.data:
        parser.error("--data must name what --prepare wrote")
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        record_data.unpack(arguments.data, Path(folder), tiny=arguments.tiny)
        plan = Plan(
            folder=Path(folder),
            configurations=record_data.read_configurations(arguments.data, tiny=arguments.tiny),
            rows={task: record_data.count_lines(Path(folder) / task / "train.jsonl") for task in TASKS},
            deadline=began + arguments.seconds,
        )
        summary = record(plan, TINY if arguments.tiny else Counts(), arguments.output, arguments.jobs)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
