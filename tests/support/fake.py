"""A train function that costs nothing, for tests of everything around training."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from search_spaces import Context, load_search_space
from trainables.config import Progress, Report, RungReport, TrialConfig
from trainables.scoring.measures import Scores
from tuner.request.config import SearchConfig
from tuner.run_dir.mirror import Mirror
from tuner.schedule.agenda import Agenda
from tuner.schedule.jobs import TrialConfigs
from tuner.study.storage import open_storage
from tuner.study.study import SearchStudy

METRIC = "dense.ndcg_at_10"
PARETO = "sparse.ndcg_at_10"
START = {
    "learning_rate": 1e-5, "temperature": 0.02, "train_group_size": 4, "per_device_train_batch_size": 8,
    "warmup_ratio": 0.1,
}  # fmt: skip


def score_of(arguments: "dict[str, float] | object", fraction: float) -> float:
    """Best at learning rate 1e-5 and temperature 0.02, and better the longer it trains."""
    assert isinstance(arguments, dict)
    off = math.log10(arguments["learning_rate"] / 1e-5) ** 2 + math.log10(arguments["temperature"] / 0.02) ** 2
    return 0.6 + 0.2 * fraction - 0.1 * off


def fake_rungs(config: TrialConfig) -> Iterator[RungReport]:
    """Yields the reports of a job: `score_of` at every rung, and for the base model and the test set 0.6."""
    if not config.rungs:
        _score(config)
        others = {config.metric: 0.7, PARETO: 0.8} if PARETO in config.metric else {}
        report = _report(rung=0, fraction=0.0, value=0.6, last=True, guards=_guards(config), others=others)
        yield replace(report, scores={}) if config.split is None else report
    for rung, fraction in enumerate(config.rungs, start=1):
        value = score_of(dict(config.arguments), fraction) + 0.001 * (config.arguments["seed"] - 42)
        last = rung == len(config.rungs)
        job: dict[str, Any] = {"rung": rung, "fraction": fraction, "last": last}
        job["guards"] = _guards(config) if last else {}
        if PARETO in config.metric:
            other = 0.9 - 0.1 * math.log10(config.arguments["learning_rate"] / 1e-6)  # the slower, the better
            job["others"] = {config.metric: (value + other) / 2, PARETO: other}
        yield _report(value=value, **job)


def fake_train(config: TrialConfig, report: Report, progress: Progress) -> None:
    """Reports every rung; writes an empty checkpoint."""
    if config.rungs:
        (Path(config.directory) / "checkpoint").mkdir(parents=True, exist_ok=True)
    for rung in fake_rungs(config):
        progress(rung.step, 100)
        if not report(rung):
            return


def _score(config: TrialConfig) -> None:
    """Leaves what a worker leaves of a score-only job."""
    folder = Path(config.directory)
    folder.mkdir(parents=True, exist_ok=True)
    if config.alphas:
        rows = [{"alpha": a, "dev": {METRIC: 0.6 + 0.1 * a}, "guard": _guards(config, a)} for a in config.alphas]
        (folder / "mixtures.json").write_text(json.dumps(rows))
        return
    if config.alpha is not None:
        (folder / "checkpoint").mkdir()
    if config.split == "dev":
        value = 0.65 if "-as-" in config.name else 0.6  # other settings than the user's are better
        scores = Scores(split="dev", per_query={config.metric: {"q": value}}, retrieved={"q": []})
        (folder / "dev.json").write_text(scores.to_json())
    if config.split == "test":
        scores = Scores(split="test", per_query={config.metric: {"q": 0.6}}, retrieved={"q": []})
        (folder / "test.json").write_text(scores.to_json())
    if config.guards:
        (folder / "guard.json").write_text(json.dumps(_guards(config)))


def _guards(config: TrialConfig, alpha: float = 1.0) -> dict[str, float]:
    """The base model has 0.5 on every guard; training at 1e-5 loses 0.1, and with the logarithm of the rate."""
    trained = bool(config.rungs) or config.checkpoint is not None
    loss = 0.1 * (1 + math.log10(config.arguments["learning_rate"] / 1e-5)) if trained else 0.0
    return {Path(guard).name: 0.5 - alpha * (config.alpha or 1.0) * loss for guard in config.guards}


def _report(
    *,
    rung: int,
    fraction: float,
    value: float,
    last: bool,
    guards: Mapping[str, float],
    others: Mapping[str, float] = {},
) -> RungReport:
    seconds = {"training": fraction, "scoring": 0.1, "overhead": 0.0}
    examples = int(1000 * fraction)
    return RungReport(
        rung=rung, fraction=fraction, step=examples // 10, examples=examples, loss=1.0,
        value=next(iter(others.values()), value), scores={METRIC: value, **others}, last=last, guards=guards,
        seconds=seconds,
    )  # fmt: skip


def new_study(config: SearchConfig, storage: BaseStorage) -> SearchStudy:
    return SearchStudy(
        storage,
        config,
        space=load_search_space(config.search_space or "m3"),
        context=Context(rows=1000, negatives=7, start=START),
    )


def open_study(config: SearchConfig, run_dir: Path) -> SearchStudy:
    return new_study(config, open_storage(config.storage, run_dir))


def new_agenda(
    config: SearchConfig,
    study: SearchStudy,
    run_dir: Path,
    clock: Callable[[], float] = time.monotonic,
    mirror: Mirror | None = None,
) -> Agenda:
    configs = TrialConfigs(search=config, run_dir=run_dir, arguments=START, eval_data=str(run_dir / "eval"))
    return Agenda(study, configs, mirror=mirror, clock=clock)


def open_agenda(
    config: SearchConfig, run_dir: Path, clock: Callable[[], float] = time.monotonic, mirror: Mirror | None = None
) -> Agenda:
    return new_agenda(config, open_study(config, run_dir), run_dir, clock, mirror)
