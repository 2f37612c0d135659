"""How a trial computes its steps: in the fastest way that its device has the memory for. No loss depends on it."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from trainables.config import TrialConfig
from trainables.failures import Planned
from trainables.m3.runner import Runner
from trainables.m3.tokens import TokenCache
from trainables.memory.device import device_bytes
from trainables.memory.plan import StepPlan, plan_step
from trainables.memory.shape import Lengths, Shape, Texts
from trainables.process import world_size

logger = logging.getLogger(__name__)


@contextmanager
def planned(runner: Runner, config: TrialConfig) -> Iterator[None]:
    """Plans the steps of a block in which a runner trains; what the block raises says how they were planned.

    On the host, whose memory is shared with everything else, they are computed as the arguments say.
    """
    if runner.training_args.device.type != "cuda":
        yield
        return
    has = device_bytes()
    limit = has if config.memory_limit is None else min(has, config.memory_limit)
    plan = step_plan(runner, config.arguments, limit)
    set_plan(runner, plan)
    logger.info("%s; the device has %.1f GB", plan, has / 1e9)
    try:
        yield
    except Exception as error:
        Planned(bytes=plan.bytes, smallest=plan.smallest).mark(error)
        raise


def step_plan(runner: Runner, arguments: Mapping[str, Any], limit: float) -> StepPlan:
    """Returns how steps are computed in `limit` bytes of a device."""
    of_runner = vars(runner.model_args) | vars(runner.data_args) | vars(runner.training_args)
    encoder = runner.model.model
    reachable = None if runner.vocabulary is None else len(encoder.get_input_embeddings().weight)
    parameters = sum(parameter.numel() for parameter in runner.model.parameters())
    if reachable is not None:
        parameters += (encoder.config.vocab_size - reachable) * encoder.config.hidden_size
    values = {**of_runner, **arguments}
    return plan_step(
        limit,
        Shape.of(encoder.config, parameters=parameters, colbert_dim=runner.model_args.colbert_dim),
        values,
        texts=_texts(runner, values),
        reachable=reachable,
        workers=world_size(),
    )


def _texts(runner: Runner, arguments: Mapping[str, Any]) -> Texts:
    collator = runner.data_collator
    caches = (collator.query_tokens.cache, collator.passage_tokens.cache)
    if None in caches or not collator.layout.packed or collator.layout.like_upstream:
        return Texts.longest(arguments)
    return Texts.likely(arguments, *map(_lengths, caches))


def _lengths(cache: TokenCache) -> Lengths:
    lengths = cache.lengths
    return Lengths(mean=float(np.mean(lengths)), deviation=float(np.std(lengths)), longest=int(lengths.max()))


def set_plan(runner: Runner, planned: StepPlan) -> None:
    """Has a runner that has not trained yet compute its steps so."""
    runner.model.checkpoint_layers = planned.checkpointing
    runner.model.sub_batch_size = planned.sub_batch_size
    collator = runner.data_collator
    collator.layout = dataclasses.replace(collator.layout, sub_batch_size=planned.sub_batch_size)
