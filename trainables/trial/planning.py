"""How a trial computes its steps: in the fastest way that its device has the memory for. No loss depends on it."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from trainables.config import TrialConfig
from trainables.failures import Planned
from trainables.m3.runner import Runner
from trainables.m3.tokens import TokenCache, passage_texts, query_texts
from trainables.memory.device import device_bytes
from trainables.memory.plan import StepPlan, plan_step
from trainables.memory.shape import Lengths, Shape, Texts
from trainables.process import world_size

logger = logging.getLogger(__name__)

_ROWS = 1024
"""Rows whose lengths are looked at, of all sources together: a quarter of a second."""
_ROWS_OF_A_SOURCE = 64
"""At least."""


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
    if hasattr(runner.train_dataset, "batch_size_idxs"):  # upstream sets the argument to 1: its rows are batches
        values["per_device_train_batch_size"] = int(max(runner.train_dataset.batch_size_idxs))
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
    queries, passages = map(_lengths, caches)
    return Texts.likely(arguments, queries, passages, _sources(runner, arguments))


def _sources(runner: Runner, arguments: Mapping[str, Any]) -> Iterator[tuple[int, Lengths]]:
    """Yields the rows in a batch of each source, and their lengths."""
    dataset = runner.train_dataset
    if not hasattr(dataset, "batch_size_idxs"):
        yield int(arguments["per_device_train_batch_size"]), _of_rows(runner, np.arange(len(dataset)), _ROWS)
        return
    looked_at = max(_ROWS_OF_A_SOURCE, _ROWS // len(dataset.each_data_idxs))
    for rows, count in zip(dataset.each_data_idxs, dataset.batch_size_idxs, strict=True):
        yield count, _of_rows(runner, rows, looked_at)


def _of_rows(runner: Runner, rows: npt.NDArray[np.int64], most: int) -> Lengths:
    """Returns how many tokens rows have with their groups, by `most` of them, which lie evenly among them."""
    collator, dataset = runner.data_collator, runner.train_dataset
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]
    some = SimpleNamespace(args=dataset.args, dataset=dataset.dataset.select(chosen))
    queries = [len(ids) for ids in collator.query_tokens(list(query_texts(some)))]
    passages = (len(ids) for ids in collator.passage_tokens(list(passage_texts(some))))
    drawn = dataset.args.train_group_size - 1
    means, variances = [], []
    for row, query in zip(some.dataset, queries, strict=True):
        positives, negatives = list(islice(passages, len(row["pos"]))), list(islice(passages, len(row["neg"])))
        means.append(query + np.mean(positives) + (drawn * np.mean(negatives) if drawn else 0))
        variances.append(np.var(positives) + (drawn * np.var(negatives) if drawn else 0))
    deviation = math.sqrt(np.var(means) + np.mean(variances))
    longest = dataset.args.query_max_len + dataset.args.train_group_size * dataset.args.passage_max_len
    return Lengths(mean=float(np.mean(means)), deviation=deviation, longest=longest)


def _lengths(cache: TokenCache) -> Lengths:
    lengths = cache.lengths
    return Lengths(mean=float(np.mean(lengths)), deviation=float(np.std(lengths)), longest=int(lengths.max()))


def set_plan(runner: Runner, planned: StepPlan) -> None:
    """Has a runner that has not trained yet compute its steps so."""
    runner.model.checkpoint_layers = planned.checkpointing
    runner.model.sub_batch_size = planned.sub_batch_size
    collator = runner.data_collator
    collator.layout = dataclasses.replace(collator.layout, sub_batch_size=planned.sub_batch_size)
