"""What a search would take: its space, its memory against the device, its hours and its price. Nothing is searched."""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.loading import suggest
from trainables.config import TrialConfig
from tuner.request.arguments import translated
from tuner.request.config import SearchConfig
from tuner.schedule.disk import gigabytes, search_bytes
from tuner.schedule.time_budget import final_scorings
from tuner.search.plan import Plan, honoured

_SAMPLES = 200
_PROBE_SECONDS = 900
_STATE_BYTES = 16  # a parameter in float32, its gradient and AdamW's two moments
_LAYER_BYTES = 34  # of a token, over the hidden size, at 16 bits, attention scores not kept
"""Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, equation 1 without the term
of the scores, which PyTorch's attention does not keep."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The first steps of the user's own settings, as they ran here."""

    seconds_per_step: float
    steps: int
    """Of a whole trial."""
    peak_bytes: int
    """On the device."""


def describe(plan: Plan) -> list[str]:
    """Returns the plan in lines: rungs, space, memory, disk, hours and price; a few steps are trained for the hours."""
    config = plan.config
    samples = _samples(plan)
    rungs = " ".join(f"{share:.0%}" for share in config.rungs)
    kept = max(config.keep_checkpoints, config.finalist_count, 1) + 1
    held = gigabytes(search_bytes(config, plan.weights_bytes, kept))
    return [
        f"rungs       {rungs} of {plan.dataset.rows:,} rows x {plan.context.start['num_train_epochs']:g} epochs; "
        f"{config.sampler} suggests, {config.pruner} stops",
        *_space_lines(samples),
        *_memory_lines(plan, [values for values, _ in samples]),
        f"disk        up to {held}",
        *_time_lines(plan),
    ]


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
    return [f"space       {size}", *(f"            {name}  {_range(d)}" for name, d in known.items())]


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


def memory_bytes(parameters: float, shape: Mapping[str, int], arguments: Mapping[str, Any]) -> float:
    """Returns an estimate of what training takes on a device; the real peak is what a probe measures.

    Args:
        parameters: Of the model.
        shape: ``hidden_size`` and ``num_hidden_layers`` of the encoder.
        arguments: Of a trial, by FlagEmbedding's names.
    """
    wide = 1 if arguments.get("fp16") or arguments.get("bf16") else 2
    token = shape["hidden_size"] * wide
    layers = shape["num_hidden_layers"]
    kept = 2 * layers + _LAYER_BYTES if arguments.get("gradient_checkpointing") else _LAYER_BYTES * layers
    return parameters * _STATE_BYTES + _tokens_at_once(arguments) * token * kept


def _tokens_at_once(arguments: Mapping[str, Any]) -> int:
    batch = int(arguments["per_device_train_batch_size"])
    passages = batch * int(arguments["train_group_size"])
    at_once = min(passages, int(arguments.get("sub_batch_size") or 0) or passages)
    lengths = {name: int(arguments.get(name) or default) for name, default in _LENGTHS.items()}
    return max(batch * lengths["query_max_len"], at_once * lengths["passage_max_len"])


_LENGTHS = {"query_max_len": 32, "passage_max_len": 128}
"""FlagEmbedding's defaults."""


def _memory_lines(plan: Plan, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    from transformers import AutoConfig

    own_code = bool(plan.arguments.get("trust_remote_code"))
    model = AutoConfig.from_pretrained(plan.arguments["model_name_or_path"], trust_remote_code=own_code)
    shape = {name: int(getattr(model, name)) for name in ("hidden_size", "num_hidden_layers")}
    parameters = plan.weights_bytes / (2 if "16" in str(model.dtype) else 4)
    sizes = sorted(memory_bytes(parameters, shape, {**plan.arguments, **values}) for values in samples)
    own = memory_bytes(parameters, shape, plan.arguments)
    device, has = _device(plan.config)
    beyond = sum(size > has for size in sizes)
    fits = "all of them fit" if not beyond else f"{beyond} of {len(sizes)} sampled ones are split into sub-batches"
    return [
        f"memory      about {gigabytes(own)} for your settings, {gigabytes(sizes[0])} to {gigabytes(sizes[-1])} in the "
        f"space, at full length; {device} has {gigabytes(has)}: {fits}"
    ]


def _trains_on_gpu(config: SearchConfig) -> bool:
    import torch

    return config.gpus_per_trial != 0 and torch.cuda.is_available()


def _device(config: SearchConfig) -> tuple[str, float]:
    import torch

    if _trains_on_gpu(config):
        return torch.cuda.get_device_name(), float(torch.cuda.get_device_properties(0).total_memory)
    import os

    return "this machine, without a GPU,", float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


# Time


def _time_lines(plan: Plan) -> list[str]:
    from tuner.cluster.connection import address_of

    config = plan.config
    if address_of(config):
        return ["hours       not known: the first steps are timed where the workers run; plan on such a machine"]
    try:
        probe = run_probe(plan)
    except RuntimeError as error:
        return [f"hours       not known: the first steps of your settings did not run: {error}"]
    hours = search_hours(config, probe, scoring_seconds(plan, probe.seconds_per_step))
    lines = [
        f"probe       {probe.seconds_per_step:.3g} s a step, {probe.steps:,} steps a trial, "
        f"{gigabytes(probe.peak_bytes)} at the peak",
        f"hours       about {_hours(hours)} in all, if every trial takes for a row what your settings take",
    ]
    if config.time_budget_seconds is not None:
        verdict = "ends it earlier" if hours * 3600 > config.time_budget_seconds else "holds it"
        lines.append(f"            --time_budget {config.time_budget} {verdict}")
    if config.price_per_hour is not None:
        lines.append(f"price       about {hours * config.price_per_hour:.2f} at {config.price_per_hour:g} an hour")
    return lines


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"


def run_probe(plan: Plan) -> Probe:
    """Trains the first steps of the user's settings in a process of its own.

    Raises:
        RuntimeError: They failed, with the last line of why.
    """
    arguments, _ = honoured(plan.arguments, gpu=_trains_on_gpu(plan.config))
    with tempfile.TemporaryDirectory() as folder:
        job = TrialConfig(
            name="probe",
            directory=str(Path(folder) / "trials" / "probe"),
            arguments=translated({**arguments, "seed": plan.config.seed}),
            eval_data=str(plan.dataset.eval_data),
            metric=plan.config.metric,
            rungs=(1.0,),
        )
        command = [sys.executable, "-m", "trainables.trial.probe", json.dumps(job.to_dict())]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"4 steps took more than {_PROBE_SECONDS} s") from None
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    return Probe(**json.loads(done.stdout.splitlines()[-1]))


def scoring_seconds(plan: Plan, seconds_per_step: float) -> float:
    """Returns an estimate of scoring dev once: the corpus forward, where a step goes forward and twice as far back."""
    arguments = plan.arguments
    passages = int(arguments["per_device_train_batch_size"]) * int(arguments["train_group_size"])
    with (Path(plan.dataset.eval_data) / "corpus.jsonl").open("rb") as lines:
        corpus = sum(1 for _ in lines)
    return corpus * seconds_per_step / (3 * passages)


def search_hours(config: SearchConfig, probe: Probe, scoring: float) -> float:
    """Returns an estimate of a search's hours.

    Args:
        config: The search.
        probe: What the user's own settings take; the others are taken to see as many rows in as many seconds.
        scoring: Seconds of scoring a split once.
    """
    training = probe.seconds_per_step * probe.steps
    trial = training + len(config.rungs) * scoring
    sampled = max(0, config.num_trials - 2) * (training * _trained_share(config) + len(config.rungs) * scoring)
    retrained = config.finalist_count * config.finalist_seeds * trial
    end = final_scorings(config) * scoring
    return (scoring + trial + (sampled + retrained) / config.concurrent_trials + end) / 3600


def _trained_share(config: SearchConfig) -> float:
    """What is trained of a sampled trial on average, where each rung stops half of those that reach it."""
    steps = [after - before for before, after in pairwise((0.0, *config.rungs))]
    return sum(step * (1.0 if config.pruner == "none" else 0.5**rung) for rung, step in enumerate(steps))
