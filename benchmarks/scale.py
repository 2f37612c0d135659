"""What the driver costs at scale: many trials over many slots, with training that takes no time.

    python benchmarks/scale.py                                       1,000 trials over 64 slots, SQLite
    python benchmarks/scale.py --trials 200 --slots 16 --storage postgresql://...
    python benchmarks/scale.py --ray 2 --slots 4 --trials 40         on real Ray, over 2 simulated nodes

The driver's own work is measured: suggesting, recording rungs, pruning, telling, keeping weights. The slots are
simulated in this process, in turn, so Ray's own messages are not in the figures; with ``--ray`` they are: each slot is
then a real worker group (a worker and seven processes beside it, 1.4 GB together: LOG.md) whose train function only
reports, and the driver's CPU seconds tell what Ray adds to a trial. The peer in the same run is Optuna alone, asked and
told as often, with the same sampler, pruner and storage. The last line is JSON::

    {"trials", "slots", "driver_ms_per_trial", "driver_rss_mb", "growth",
     "cpu_ms_per_trial", "optuna_ms_per_trial", "storage_kb_per_trial"}

``growth`` is milliseconds a trial in the last tenth over the first; ``cpu_ms_per_trial`` leaves out waiting for the
disk and for other programs.
"""

import argparse
import json
import math
import os
import resource
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna

from search_spaces import Context, load_search_space
from trainables.config import Progress, Report, RungReport, TrialConfig
from tuner.cluster.connection import connected
from tuner.cluster.executor import run_on_ray
from tuner.cluster.slot import Slots
from tuner.request.config import SearchConfig
from tuner.schedule.agenda import Agenda
from tuner.schedule.jobs import TrialConfigs
from tuner.study.storage import open_storage
from tuner.study.study import SearchStudy

START = {"learning_rate": 1e-5, "temperature": 0.02, "train_group_size": 8, "per_device_train_batch_size": 2}
ROWS = 100_000


def quality(learning_rate: float, temperature: float, fraction: float) -> float:
    """A smooth objective: best at the user's own values, better with more examples."""
    off = math.log10(learning_rate / 1e-5) ** 2 + math.log10(temperature / 0.02) ** 2
    return 0.5 + 0.1 * fraction - 0.1 * off


def rungs(config: TrialConfig) -> Iterator[RungReport]:
    """The reports of a job, as training would make them: four heads with four measures each."""
    for number, fraction in enumerate(config.rungs or (0.0,), start=1 if config.rungs else 0):
        arguments = config.arguments if config.rungs else {**config.arguments, **START}
        value = quality(float(arguments["learning_rate"]), float(arguments["temperature"]), fraction)
        yield RungReport(
            rung=number,
            fraction=fraction,
            step=int(fraction * ROWS) // 2,
            examples=int(fraction * ROWS),
            loss=1.0,
            value=value,
            scores={
                f"{head}.{measure}": value for head in ("dense", "sparse", "colbert", "hybrid") for measure in "abcd"
            },
            last=number == len(config.rungs),
            seconds={"training": fraction, "scoring": 0.1, "overhead": 0.0},
        )


def drive(agenda: Agenda, slots: int, ended: Callable[[], None]) -> None:
    """Runs `agenda` over simulated slots, one rung of one slot at a time."""
    busy: deque[tuple[TrialConfig, Iterator[RungReport]]] = deque()
    while not agenda.finished:
        while len(busy) < slots and (config := agenda.next()) is not None:
            busy.append((config, rungs(config)))
        if not busy:
            continue
        config, reports = busy.popleft()
        report = next(reports)
        if agenda.rung(config.name, report) and not report.last:
            busy.append((config, reports))
        else:
            agenda.ended(config.name)
            ended()


def fake_train(config: TrialConfig, report: Report, progress: Progress) -> None:  # noqa: ARG001
    """Reports the rungs of a job and does nothing else."""
    for rung in rungs(config):
        if not report(rung):
            return


@contextmanager
def simulated_nodes(count: int, slots: int) -> Iterator[None]:
    """Connects to a head and `count` nodes on this machine, with a CPU for every slot."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1])))
    store = 100_000_000
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": store})
    for number in range(count):
        share = slots // count + (number < slots % count)
        cluster.add_node(num_cpus=share, object_store_memory=store)
    with connected(SearchConfig(address=cluster.address)):
        assert len(ray.nodes()) == count + 1  # type: ignore[no-untyped-call]
        yield
    cluster.shutdown()  # type: ignore[no-untyped-call]


def drive_on_ray(agenda: Agenda, slots: int, nodes: int, folder: Path, ended: Callable[[], None]) -> None:
    """Runs `agenda` in worker groups on simulated nodes."""
    taken_in = agenda.ended

    def told(name: str) -> None:
        taken_in(name)
        ended()

    agenda.ended = told  # type: ignore[method-assign]
    with simulated_nodes(nodes, slots):
        places = Slots(count=slots, workers=1, cpus=1, gpus=0, folder=folder, start_seconds=300, silence_seconds=300)
        run_on_ray(agenda, places, train=fake_train)


def optuna_alone(storage: optuna.storages.BaseStorage, config: SearchConfig) -> float:
    """Returns milliseconds a trial of the same number of asks, reports and tells with nothing around them."""
    study = optuna.create_study(
        storage=storage,
        direction="maximize",
        study_name="peer",
        sampler=optuna.samplers.TPESampler(seed=config.seed, multivariate=True, group=True, constant_liar=True),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    )
    started = time.perf_counter()
    for _ in range(config.num_trials):
        trial = study.ask()
        rate, temperature = (
            trial.suggest_float("lr", 2e-6, 3e-5, log=True),
            trial.suggest_float("t", 0.01, 0.05, log=True),
        )
        trial.suggest_categorical("group", [2, 4, 8])
        trial.suggest_categorical("batch", [1, 2, 4, 8])
        trial.suggest_float("warmup", 0.05, 0.2)
        for rung, fraction in enumerate(config.rungs, start=1):
            trial.report(quality(rate, temperature, fraction), rung)
            if trial.should_prune():
                break
        study.tell(trial, quality(rate, temperature, 1.0))
    return 1000 * (time.perf_counter() - started) / config.num_trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--storage", help="Optuna storage URL; SQLite in a temporary folder if left out")
    parser.add_argument("--ray", type=int, metavar="NODES", help="run on this many simulated Ray nodes")
    given = parser.parse_args()
    config = SearchConfig(num_trials=given.trials, concurrent_trials=given.slots, finalists=0, storage=given.storage)

    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        study = SearchStudy(
            open_storage(config.storage, run_dir),
            config,
            space=load_search_space("m3"),
            context=Context(rows=ROWS, negatives=7, start=START),
        )
        agenda = Agenda(study, TrialConfigs(search=config, run_dir=run_dir, arguments=START, eval_data="eval"))
        ends, cpu = [time.perf_counter()], [time.process_time()]

        def ended() -> None:
            ends.append(time.perf_counter())
            cpu.append(time.process_time())

        if given.ray:
            drive_on_ray(agenda, given.slots, given.ray, run_dir, ended)
            del ends[: given.slots], cpu[: given.slots]  # the groups start with their first jobs
        else:
            drive(agenda, given.slots, ended)
        size = (run_dir / "study.db").stat().st_size if config.storage is None else math.nan
        peer = optuna_alone(open_storage(config.storage or f"sqlite:///{run_dir}/peer.db", run_dir), config)
    report(config, ends, cpu=cpu[-1] - cpu[0], peer=peer, size=size)


def report(config: SearchConfig, ends: list[float], *, cpu: float, peer: float, size: float) -> None:
    """Prints the figures; `ends` are the times at which jobs ended, after the time of the start."""
    jobs = len(ends) - 1
    tenth = max(1, jobs // 10)
    parts = [1000 * (ends[i + tenth] - ends[i]) / tenth for i in range(0, tenth * 10, tenth)]
    each = 1000 * (ends[-1] - ends[0]) / jobs
    print("ms a trial, by tenth of the search:", " ".join(f"{part:.0f}" for part in parts))
    print(f"driver {each:.1f} ms a trial, Optuna alone {peer:.1f} ms: ratio {each / peer:.2f}")
    print(
        f"1,000 slots are kept busy by trials that take longer than 1,000 x {parts[-1]:.0f} ms = {parts[-1]:.0f} s each"
    )
    figures = {
        "trials": config.num_trials,
        "slots": config.concurrent_trials,
        "driver_ms_per_trial": round(each, 2),
        "driver_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "growth": round(parts[-1] / parts[0], 2),
        "cpu_ms_per_trial": round(1000 * cpu / jobs, 2),
        "optuna_ms_per_trial": round(peer, 2),
        "storage_kb_per_trial": round(size / 1024 / config.num_trials, 1) if math.isfinite(size) else None,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
