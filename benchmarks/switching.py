"""The pause between two trials, ours against one `TorchTrainer` for each Tune trial, and what a search costs beside it.

Both sides run the same trials on the same machine, one after the other: the embedded example's model and data, a few
steps each, on the CPU. Ours is the search's own executor; the peer is the pattern of Ray's documentation, a Tune
function trainable that calls ``TorchTrainer.fit()``, with a concurrency of one. A pause is the time from the last
report of a trial to the end of the next one's first optimizer step; the median is given, without the first pause.

Then a search of 12 trials is run in which each trial trains for as long as `--seconds` says (it sleeps for the rest).
Overhead is what the search took, its start and its end included, beyond training and scoring.

    python benchmarks/switching.py                     12 trials of a minute
    python benchmarks/switching.py --seconds 5

The last line is JSON: ``{"ours_s", "peer_s", "ratio", "overhead_share"}``.
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from search_spaces import Context
from trainables.config import Progress, Report, RungReport, TrialConfig
from trainables.worker.loop import train_trial
from tuner.cluster.connection import connected, cores
from tuner.cluster.executor import run_on_ray
from tuner.cluster.slot import Slots
from tuner.data.example import example_arguments, write_example
from tuner.request.arguments import honoured, translated
from tuner.request.config import SearchConfig
from tuner.schedule.agenda import Agenda
from tuner.schedule.jobs import TrialConfigs
from tuner.study.storage import open_storage
from tuner.study.study import SearchStudy

STEPS = 4
START = {
    "learning_rate": 2e-5,
    "temperature": 0.02,
    "train_group_size": 2,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 1.0,
    "warmup_ratio": 0.0,
}
METRIC = "dense.ndcg_at_10"


def logged(config: TrialConfig, report: Report, progress: Progress, *, log: str, seconds: float = 0.0) -> None:
    """Does a job; writes when its first step and its last report were, and makes its training last `seconds`."""
    began = time.time()

    def say(event: str) -> None:
        with Path(log).open("a") as file:
            file.write(json.dumps({"name": config.name, "event": event, "time": time.time()}) + "\n")

    def on_step(step: int, steps: int) -> bool | None:
        if step == 1:
            say("first step")
        if config.rungs:
            time.sleep(max(0.0, seconds * step / steps - (time.time() - began)))
        return progress(step, steps)

    def on_rung(rung: RungReport) -> bool:
        goes_on = report(rung)
        say("report")
        return goes_on

    train_trial(config, on_rung, on_step)


def pauses(log: Path) -> list[float]:
    """Returns the seconds from a trial's last report to the next one's first step, in the order of the log."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    found, reported = [], 0.0
    for event in events:
        if event["event"] == "first step" and reported:
            found.append(event["time"] - reported)
        reported = event["time"] if event["event"] == "report" else 0.0
    return found


class Bench:
    """The embedded example in a folder of its own.

    Args:
        folder: For data, trials and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        train_data, self.eval_data = write_example(folder / "example")
        few = folder / "rows.jsonl"
        few.write_text("".join(train_data.open().readlines()[: STEPS * int(START["per_device_train_batch_size"])]))
        arguments, _ = honoured({**example_arguments(), "train_data": [str(few)]}, gpu=False)
        self.arguments = {**arguments, "model_name_or_path": _model(arguments)}

    def search(self, name: str, trials: int, seconds: float) -> tuple[list[float], float, float]:
        """Runs a search; returns its pauses, its wall clock, and what of it was training and scoring."""
        config = SearchConfig(num_trials=trials, finalists=0, pruner="none", rungs=(1.0,), sampler="random")
        run_dir = self.folder / name
        run_dir.mkdir()
        study = SearchStudy(
            open_storage(None, run_dir),
            config,
            space=_one_setting,
            context=Context(rows=STEPS * 4, negatives=1, start=START),
        )
        started = time.time()
        with connected(config):
            arguments = {**self.arguments, **START}
            configs = TrialConfigs(search=config, run_dir=run_dir, arguments=arguments, eval_data=str(self.eval_data))
            agenda = Agenda(study, configs)
            slots = Slots(count=1, workers=1, cpus=cores(), gpus=0, folder=run_dir / ".ray")
            log = run_dir / "log.jsonl"
            run_on_ray(agenda, slots, train=functools.partial(logged, log=str(log), seconds=seconds))
        wall = time.time() - started
        records = [json.loads(line) for path in run_dir.glob("trials/*/metrics.jsonl") for line in path.open()]
        work = sum(record["seconds"]["training"] + record["seconds"]["scoring"] for record in records)
        return pauses(log), wall, work

    def peer(self, trials: int) -> list[float]:
        """Runs trials as Ray's documentation says; returns the pauses."""
        run_dir = self.folder / "peer"
        log = run_dir / "log.jsonl"
        run_dir.mkdir()
        jobs = [self._job(run_dir, f"{number:04d}", number) for number in range(trials)]
        with connected(SearchConfig()):
            tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(_drive, log=str(log), folder=str(run_dir / ".ray"), cpus=cores() - 0.5),
                    {"CPU": 0.5},
                ),
                param_space={"job": tune.grid_search([job.to_dict() for job in jobs])},
                tune_config=tune.TuneConfig(max_concurrent_trials=1),
                run_config=tune.RunConfig(name="tune", storage_path=str(run_dir / ".ray"), verbose=0),
            ).fit()
        return pauses(log)

    def _job(self, run_dir: Path, name: str, seed: int) -> TrialConfig:
        return TrialConfig(
            name=name,
            directory=str(run_dir / "trials" / name),
            arguments=translated({**self.arguments, **START, "seed": seed}),
            eval_data=str(self.eval_data),
            metric=METRIC,
            rungs=(1.0,),
        )


def _drive(config: dict[str, Any], *, log: str, folder: str, cpus: float) -> None:
    """A Tune trial: it starts a worker group, trains and ends it."""
    TorchTrainer(
        _train,
        train_loop_config={"job": config["job"], "log": log},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": cpus}),
        run_config=RunConfig(
            name=tune.get_context().get_trial_id(),
            storage_path=folder,
            callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call, list-item]
        ),
    ).fit()


def _train(config: dict[str, Any]) -> None:
    def report(rung: RungReport) -> bool:
        ray.train.report({"value": rung.value})
        return True

    logged(TrialConfig.from_dict(config["job"]), report, lambda *_: None, log=config["log"])


def _one_setting(trial: Any, context: Context) -> dict[str, Any]:  # noqa: ARG001
    """Every trial is the same work, and none is a duplicate."""
    return {**START, "learning_rate": trial.suggest_float("learning_rate", 1e-5, 3e-5)}


def _model(arguments: dict[str, Any]) -> str:
    from tuner.data.models import find_model

    return find_model(arguments["model_name_or_path"])


def _median(values: Sequence[float]) -> float:
    return statistics.median(values[1:] or values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=60.0, help="of training in each trial of the search")
    parser.add_argument("--peers", type=int, default=4, help="trials of the peer")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        peer = bench.peer(given.peers)
        print("peer, pauses in s:", *(f"{pause:.2f}" for pause in peer), flush=True)
        ours, wall, work = bench.search("search", given.trials, given.seconds)
    print("ours, pauses in s:", *(f"{pause:.2f}" for pause in ours))
    print(f"a search of {given.trials} trials took {wall:.1f} s, {work:.1f} s of it training and scoring")
    figures = {
        "ours_s": round(_median(ours), 3),
        "peer_s": round(_median(peer), 3),
        "ratio": round(_median(peer) / _median(ours), 1),
        "overhead_share": round((wall - work) / work, 4),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
