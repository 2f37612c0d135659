"""A train function that costs nothing, for tests of everything around training."""

import math
import time
from collections.abc import Callable
from pathlib import Path

from search_spaces import Context, load_search_space
from trainables.config import Progress, Report, RungReport, TrialConfig
from tuner.agenda import Agenda
from tuner.config import SearchConfig
from tuner.storage import open_storage
from tuner.study import SearchStudy

METRIC = "dense.ndcg_at_10"
START = {"learning_rate": 1e-5, "temperature": 0.02, "train_group_size": 4, "per_device_train_batch_size": 8}


def score_of(arguments: "dict[str, float] | object", fraction: float) -> float:
    """Best at learning rate 1e-5 and temperature 0.02, and better the longer it trains."""
    assert isinstance(arguments, dict)
    off = math.log10(arguments["learning_rate"] / 1e-5) ** 2 + math.log10(arguments["temperature"] / 0.02) ** 2
    return 0.6 + 0.2 * fraction - 0.1 * off


def fake_train(config: TrialConfig, report: Report, progress: Progress) -> None:
    """Reports `score_of` at every rung; writes an empty checkpoint."""
    if not config.rungs:
        _report(report, rung=0, fraction=0.0, value=0.6, last=True)
        return
    (Path(config.directory) / "checkpoint").mkdir(parents=True, exist_ok=True)
    for rung, fraction in enumerate(config.rungs, start=1):
        progress(int(100 * fraction), 100)
        value = score_of(dict(config.arguments), fraction) + 0.001 * (config.arguments["seed"] - 42)
        if not _report(report, rung=rung, fraction=fraction, value=value, last=rung == len(config.rungs)):
            return


def _report(report: Report, *, rung: int, fraction: float, value: float, last: bool) -> bool:
    seconds = {"training": fraction, "scoring": 0.1, "overhead": 0.0}
    examples = int(1000 * fraction)
    return report(
        RungReport(
            rung=rung, fraction=fraction, step=examples // 10, examples=examples, loss=1.0, value=value,
            scores={METRIC: value}, last=last, seconds=seconds,
        )
    )  # fmt: skip


def open_study(config: SearchConfig, run_dir: Path) -> SearchStudy:
    return SearchStudy(
        open_storage(config.storage, run_dir),
        space=load_search_space("m3"),
        context=Context(rows=1000, negatives=7, start=START),
        sampler=config.sampler,
        pruner=config.pruner,
        seed=config.seed,
        num_trials=config.num_trials,
    )


def open_agenda(config: SearchConfig, run_dir: Path, clock: Callable[[], float] = time.monotonic) -> Agenda:
    study = open_study(config, run_dir)
    eval_data = str(run_dir / "eval")
    return Agenda(config, study, run_dir=run_dir, arguments=START, eval_data=eval_data, clock=clock)
