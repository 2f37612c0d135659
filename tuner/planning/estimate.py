"""What a search would take: its space, its memory against the device, its hours and its price. Nothing is searched."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.loading import suggest
from trainables.memory.plan import StepPlan, plan_step
from trainables.memory.shape import Shape, Texts
from trainables.scoring.heldout import read_qrels
from trainables.scoring.measures import DEPTH
from tuner.data.beir import count_passages
from tuner.errors import RequestError, counted
from tuner.interrupts import Interrupted
from tuner.planning.plan import Plan
from tuner.planning.probe import Probe, run_probe, trains_on_gpu
from tuner.request.config import SearchConfig
from tuner.schedule.disk import gigabytes, search_bytes
from tuner.schedule.time_budget import final_scorings

_SAMPLES = 200
_BUSY = 1.5
"""Processes a core, on average over a minute, from which on what is timed takes much longer than alone."""
_HALVING = ("promotion", "successive_halving")
"""Pruners that take ``--reduction_factor``; the others stop about half."""
_FLOAT32 = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Hours:
    """What a search takes, in hours of the clock."""

    training: float
    """Of the user's own settings and of the sampled trials."""
    scoring: float
    """Of the same trials at their rungs."""
    end: float
    """The base model, finalists, test, guards and mixtures."""
    own: float
    """Of the user's own settings, trained and scored: a part of the first two."""
    retraining: float
    """Of the finalists: a part of the end."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.training + self.scoring + self.end

    @property
    def least(self) -> float:
        """What no time budget leaves out: the base model, the user's own settings and test."""
        return self.own + self.end - self.retraining

    def within(self, budget: float) -> float:
        """Returns what is spent of so many hours: all that is needed, or what cannot be left out."""
        return min(self.total, max(budget, self.least))

    def parts(self) -> dict[str, float]:
        """What each part is called, and its hours."""
        return {"training": self.training, "scoring at rungs": self.scoring, "base model, finalists and test": self.end}


@dataclass(frozen=True, kw_only=True)
class Passages:
    """How many passages are embedded to score dev once."""

    corpus: int
    at_rungs: int
    """The most, where that is a pool: the base model's best of several queries may be the same."""

    @property
    def is_pool(self) -> bool:
        """Whether rungs are scored on fewer than the corpus has."""
        return self.at_rungs < self.corpus


def describe(plan: Plan) -> Iterator[str]:
    """Yields the plan in lines: rungs, space, memory, disk, hours and price; a few steps are trained for the hours.

    Raises:
        RequestError: These steps failed; the lines before have been given.
    """
    config = plan.config
    samples = _samples(plan)
    rungs = " ".join(f"{100 * share:g}%" for share in config.rungs)
    kept = max(config.keep_checkpoints, config.finalist_count, 1) + 1
    held = gigabytes(search_bytes(config, plan.weights_bytes, kept, plan.token_bytes))
    yield (
        f"rungs       {rungs} of {plan.context.rows:,} rows x {plan.context.start['num_train_epochs']:g} epochs; "
        f"{config.sampler} suggests, {config.pruner} stops"
    )
    yield from _space_lines(samples)
    yield from _memory_lines(plan, [values for values, _ in samples])
    yield from _gpu_lines(config, plan.arguments)
    yield f"disk        up to {held}"
    yield from _time_lines(plan)


def _samples(plan: Plan) -> list[tuple[dict[str, Any], dict[str, BaseDistribution]]]:
    """What the space suggests, a number of times, and from what."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=plan.config.seed))
    found = []
    for _ in range(_SAMPLES):
        trial = study.ask()
        found.append((suggest(plan.space, trial, plan.context), dict(trial.distributions)))
    return found


def _space_lines(samples: Sequence[tuple[Mapping[str, Any], Mapping[str, BaseDistribution]]]) -> list[str]:
    known: dict[str, BaseDistribution] = {}
    for _, distributions in samples:
        known |= distributions
    counts = {name: _values(distribution) for name, distribution in known.items()}
    finite = math.prod(count for count in counts.values() if count is not None)
    continuous = sum(count is None for count in counts.values())
    size = f"{finite:,} combinations" + (f" x {continuous} continuous" if continuous else "")
    width = max(map(len, known), default=0)
    return [f"space       {size}", *(f"            {name:<{width}}  {_range(d)}" for name, d in known.items())]


def _values(distribution: BaseDistribution) -> int | None:
    """How many values there are; None for a continuum."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution) or (isinstance(distribution, FloatDistribution) and distribution.step):
        return int((distribution.high - distribution.low) / (distribution.step or 1)) + 1
    return None


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return f"{distribution.low:g} to {distribution.high:g}" + (", logarithmic" if distribution.log else "")


# Memory


def _memory_lines(plan: Plan, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    from transformers import AutoConfig

    own_code = bool(plan.arguments.get("trust_remote_code"))
    model = AutoConfig.from_pretrained(plan.arguments["model_name_or_path"], trust_remote_code=own_code)
    parameters = round(plan.weights_bytes / _FLOAT32)
    shape = Shape.of(model, parameters=parameters, colbert_dim=int(plan.arguments.get("colbert_dim") or -1))
    device, has = _device(plan.config)

    def step(values: Mapping[str, Any], limit: float) -> StepPlan:
        arguments = {**plan.arguments, **values}
        return plan_step(limit, shape, arguments, texts=Texts.longest(arguments), workers=plan.config.workers)

    own, most = (max(step(values, math.inf).bytes for values in asked) for asked in ([{}], samples))
    fits = _fits([step(values, has) for values in samples])
    at_once = f"; without, the largest would take {gigabytes(most)}" if most > has else ""
    return [
        f"memory      about {gigabytes(own)} for your settings at full length; {device} has {gigabytes(has)}",
        f"            {fits}{at_once}",
    ]


def _fits(steps: Sequence[StepPlan]) -> str:
    """Says how many of the steps are computed otherwise than at once, for want of memory."""
    counts = {
        "compute layers again": sum(step.checkpointing and not step.smallest for step in steps),
        "are split into sub-batches": sum(step.sub_batch_size is not None and not step.smallest for step in steps),
    }
    ways = [f"{count} {what}" for what, count in counts.items() if count]
    beyond = sum(step.smallest for step in steps)
    fit = f"{len(steps) - beyond if beyond else 'all'} of {len(steps)} settings drawn from the space fit"
    return f"{fit}, of which {' and '.join(ways)}, with the same gradients" if ways else fit


def _gpu_lines(config: SearchConfig, arguments: Mapping[str, Any]) -> list[str]:
    """What a user of this machine's GPU would want to know beforehand."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if not trains_on_gpu(config):
        return []
    lines = []
    if not any(arguments.get(name) for name in ("fp16", "bf16", "tf32")) and torch.cuda.get_device_capability()[0] >= 8:
        lines.append("float32 without TF32, as FlagEmbedding's own; --bf16 or --tf32 is several times faster")
    if CUDA_HOME is None and _compiles_optimizer(arguments.get("deepspeed")):
        lines.append(
            "DeepSpeed compiles its optimizer in the first trial, and no CUDA toolkit (nvcc) is installed here: "
            'set "torch_adam": true under optimizer.params, or install one of the version of '
            f"PyTorch's CUDA, {torch.version.cuda}"
        )
    return [f"{'gpu' if not place else '':<12}{line}" for place, line in enumerate(lines)]


def _compiles_optimizer(deepspeed: Any) -> bool:
    """Whether DeepSpeed trains with an Adam of its own."""
    if not deepspeed:
        return False
    values = json.loads(Path(deepspeed).read_text("utf-8")) if isinstance(deepspeed, str) else deepspeed
    optimizer = values.get("optimizer") or {}
    return optimizer.get("type") in ("Adam", "AdamW") and not optimizer.get("params", {}).get("torch_adam")


def _device(config: SearchConfig) -> tuple[str, float]:
    import torch

    if trains_on_gpu(config):
        share = min(1.0, config.gpus_per_trial or 1.0)
        name = torch.cuda.get_device_name() + (f", {share:g} of it," if share < 1 else "")
        return name, torch.cuda.get_device_properties(0).total_memory * share
    return "this machine, without a GPU,", float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


# Time


def _time_lines(plan: Plan) -> Iterator[str]:
    from tuner.cluster.connection import address_of

    config = plan.config
    if address_of(config):
        yield "hours       not known: the first steps are timed where the workers run; plan on such a machine"
        return
    compiles = _compiles_optimizer(plan.arguments.get("deepspeed"))
    first = "; DeepSpeed compiles its optimizer first" if compiles else ""
    yield f"probe       a few steps of your settings, which may take minutes on a CPU{first}"
    load = psutil.getloadavg()[0]
    try:
        probe = run_probe(plan)
    except TimeoutError as error:
        yield f"hours       not known: {error}"
        return
    except Interrupted:
        yield "hours       not known: stopped before the first steps were timed"
        raise
    except RuntimeError as error:
        raise RequestError([f"the first steps of your own settings do not train, or score: {error}"]) from error
    passages = scored_passages(plan)
    hours = search_hours(config, probe, passages)
    yield from _busy_cores(load)
    on = f" (up to {passages.at_rungs:,} of {passages.corpus:,} passages)" if passages.is_pool else ""
    yield (
        f"            {probe.seconds_per_step:.3g} s a step, {probe.steps:,} steps a trial, "
        f"{gigabytes(probe.peak_bytes)} at the peak"
    )
    yield f"hours       about {_hours(hours.total)} in all, if every trial takes for a row what your settings take"
    yield f"            {_listed({name: _hours(part) for name, part in hours.parts().items()})}{on}"
    budget = math.inf if config.time_budget_seconds is None else config.time_budget_seconds / 3600
    if budget < math.inf:
        yield f"            --time_budget {config.time_budget} {_within(budget, hours)}"
    if config.price_per_hour is not None:
        yield _price_line(config.price_per_hour, budget, hours)


def _busy_cores(load: float) -> Iterator[str]:
    """Says that a time is not to be trusted where `load` processes waited for the cores before it was taken."""
    count = psutil.cpu_count() or 1  # as the load, of the whole machine
    if load > _BUSY * count:
        yield (
            f"            but other programs kept this machine's {counted(count, 'core')} busy (load {load:.1f}): "
            "alone it may take many times less; plan again when they are idle"
        )


def _within(budget: float, hours: Hours) -> str:
    """Says what becomes of a search in the hours of a time budget."""
    left = budget - hours.own - hours.end
    if hours.total <= budget:
        return "holds it"
    if left <= 0:
        lower = ", or lower --finalists" if hours.retraining else ""
        return (
            f"is less than the {_hours(hours.own + hours.end)} of your own settings, base model, finalists and test: "
            f"hardly another trial is begun; raise it{lower}"
        )
    return f"ends it earlier: about {_hours(left)} are left for trials beside your own"


def _price_line(per_hour: float, budget: float, hours: Hours) -> str:
    spent, prices = hours.within(budget), {name: f"{part * per_hour:.2f}" for name, part in hours.parts().items()}
    how = _listed(prices) if spent == hours.total else f"{hours.total * per_hour:.2f} without --time_budget"
    return f"price       about {spent * per_hour:.2f} at {per_hour:g} an hour: {how}"


def _listed(parts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {amount}" for name, amount in parts.items())


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"


def scored_passages(plan: Plan) -> Passages:
    """Returns how many passages dev is scored on, at rungs and otherwise."""
    folder, size = Path(plan.dataset.eval_data), plan.config.candidate_pool_size
    corpus = count_passages(folder)
    if not 0 < size < corpus:
        return Passages(corpus=corpus, at_rungs=corpus)
    qrels = read_qrels(folder, "dev")
    judged = {passage for of_query in qrels.values() for passage in of_query}
    return Passages(corpus=corpus, at_rungs=min(corpus, max(size, len(judged) + DEPTH * len(qrels))))


def search_hours(config: SearchConfig, probe: Probe, passages: Passages) -> Hours:
    """Returns an estimate of a search's hours.

    Args:
        config: The search.
        probe: What the user's own settings take; the others are taken to see as many rows in as many seconds.
        passages: How many are embedded to score a split once, and how many of them at a rung.
    """
    training = probe.seconds_per_step * probe.steps
    scoring = probe.seconds_per_passage * passages.corpus
    at_rung = probe.seconds_per_passage * passages.at_rungs
    sampled = max(0, config.num_trials - 2) / config.concurrent_trials
    own = training + len(config.rungs) * at_rung
    retrained = config.finalist_count * config.finalist_seeds * own / config.concurrent_trials
    end = scoring * (1 + final_scorings(config, pooled=passages.is_pool)) + retrained
    return Hours(
        training=training * (1 + sampled * _trained_share(config)) / 3600,
        scoring=at_rung * (len(config.rungs) + sampled * sum(_reached(config))) / 3600,
        end=end / 3600,
        own=own / 3600,
        retraining=retrained / 3600,
    )


def _reached(config: SearchConfig) -> list[float]:
    """Which share of the sampled trials comes to each rung: where trials are stopped, one in so many goes on."""
    if config.pruner == "none" or config.objective.is_pareto:
        return [1.0] * len(config.rungs)
    factor = config.reduction_factor if config.pruner in _HALVING else 2
    return [factor**-rung for rung in range(len(config.rungs))]


def _trained_share(config: SearchConfig) -> float:
    """What is trained of a sampled trial on average."""
    steps = [after - before for before, after in pairwise((0.0, *config.rungs))]
    return sum(step * share for step, share in zip(steps, _reached(config), strict=True))
