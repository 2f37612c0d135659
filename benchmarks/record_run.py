"""One run of a recording: the product's own training in this process, scored on the way. No files, no Ray."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.record_data import BOTH, TASKS, WARMUP_RATIO, Job, full_steps, queries_of
from benchmarks.recorded_table import FRACTIONS, Floats
from trainables.m3.arguments import build_arguments
from trainables.m3.base_models import BaseModels
from trainables.m3.runner import Model, Runner, load_model
from trainables.process import spare_what_is_kept, trial_process
from trainables.scoring.scorer import EncodingSettings, Scorer

METRIC = "dense.ndcg_at_10"
SUB_BATCH = 256
"""Texts that are kept at once where a whole batch does not fit."""


class _Scored(TrainerCallback):
    """Scores a model when it has seen its fractions of a full run's examples, in `scores` by fraction.

    Args:
        steps: optimizer steps of a full run.
        budget: fractions beyond it are left out.
        score: returns one score a query.
    """

    def __init__(self, steps: int, budget: float, score: Callable[[Model], Floats]) -> None:
        self._due = [math.ceil(fraction * steps) for fraction in FRACTIONS if fraction <= budget]
        self._score = score
        self.scores: list[Floats] = []
        self.runner: Runner | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Scores once for all fractions that the step reaches."""
        count = sum(step <= state.global_step for step in self._due) - len(self.scores)
        if not count:
            return
        assert self.runner is not None
        self.runner.trainer.check_loss()
        with self.runner.whole_model() as model:
            self.scores += [self._score(model)] * count


class _CachedRunner(Runner):
    """Reads a task's rows once a process; the data set keeps nothing between runs but its arguments."""

    kept: dict[str, Any] = {}  # noqa: RUF012

    def load_train_dataset(self) -> Any:
        key = self.data_args.train_data[0]
        if key not in self.kept:
            self.kept[key] = super().load_train_dataset()
        self.kept[key].args = self.data_args
        return self.kept[key]


class Recorder:
    """Does jobs, one after the other.

    Args:
        folder: from `unpack`.
        log: file for what training logs.
        configurations: of all tasks.
        rows: task -> training rows.
    """

    def __init__(
        self, folder: Path, log: Path, configurations: list[Mapping[str, Any]], rows: Mapping[str, int]
    ) -> None:
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("high")  # TF32 where there is any: twice as fast, and as fine as float16
        self._folder = folder
        self._log = log
        self._configurations = configurations
        self._rows = rows
        self._base = BaseModels()
        self._queries = {task: {split: queries_of(folder / task, split) for split in ("dev", "test")} for task in TASKS}
        self._scorers: dict[str, Scorer] = {}
        self.problem = ""
        """Why the last job's training ended early; empty if it did not."""

    def run(self, job: Job) -> dict[str, Floats]:
        """Returns dev and test scores, float16 of shape (fractions, queries).

        They are NaN beyond the budget, and from where training diverged; `problem` then says how.
        """
        self.problem = ""
        spare_what_is_kept()
        try:
            return self._run(job, None)
        except torch.OutOfMemoryError:
            return self._run(job, SUB_BATCH)

    def rows(self, job: Job, sub_batch_size: int | None = None) -> list[Floats]:
        """Returns what scoring found at each fraction that the job reaches; the model before training is at all."""
        with trial_process(self._log):
            return self._base_scores(job) if job.config < 0 else self._train(job, sub_batch_size)

    def _run(self, job: Job, sub_batch_size: int | None) -> dict[str, Floats]:
        rows = self.rows(job, sub_batch_size)
        count = len(self._queries[job.task]["dev"])
        total = sum(map(len, self._queries[job.task].values()))
        scores = np.full((len(FRACTIONS), total), np.nan, dtype=np.float16)
        if rows:
            scores[: len(rows)] = rows
        return {"dev": scores[:, :count], "test": scores[:, count:]}

    def _base_scores(self, job: Job) -> list[Floats]:
        arguments = build_arguments(self._arguments(job, {}), str(self._folder / "out"))
        _, model = load_model(arguments, self._base)
        return [self._score(job.task, model.to(arguments.training.device))] * len(FRACTIONS)

    def _train(self, job: Job, sub_batch_size: int | None) -> list[Floats]:
        configuration = self._configurations[job.config]
        steps = full_steps(job.task, self._rows[job.task], int(configuration["per_device_train_batch_size"]))
        values = {**configuration, "max_steps": math.ceil(job.budget * steps)}
        if sub_batch_size is not None:
            values["sub_batch_size"] = sub_batch_size
        arguments = build_arguments(self._arguments(job, values), str(self._folder / "out"))
        watch = _Scored(steps, job.budget, lambda model: self._score(job.task, model))
        runner = watch.runner = _CachedRunner(arguments, self._base, [watch], self._folder / "tokens")
        try:
            runner.trainer.train()
        except ArithmeticError as error:
            self.problem = str(error)
        return watch.scores

    def _arguments(self, job: Job, values: Mapping[str, Any]) -> dict[str, Any]:
        task = TASKS[job.task]
        return {
            "model_name_or_path": str(self._folder / "model"),
            "train_data": [str(self._folder / job.task / "train.jsonl")],
            "cache_path": str(self._folder / "arrow"),
            "query_max_len": task.query_max_len,
            "passage_max_len": task.passage_max_len,
            "sentence_pooling_method": "mean",
            "normalize_embeddings": True,
            "unified_finetuning": False,
            "lr_scheduler_type": job.schedule,
            "warmup_ratio": WARMUP_RATIO,
            "seed": job.seed,
            **values,
        }

    def _score(self, task: str, model: Model) -> Floats:
        """Returns nDCG@10 of dev's queries, then of test's."""
        found = self._scorer(task, model).score(model, BOTH, heads=["dense"]).per_query[METRIC]
        order = [query for split in ("dev", "test") for query in self._queries[task][split]]
        return np.array([found[query] for query in order])

    def _scorer(self, task: str, model: Model) -> Scorer:
        if task not in self._scorers:
            length = asdict(TASKS[task])
            del length["epochs"]
            settings = EncodingSettings(sentence_pooling_method="mean", **length)
            self._scorers[task] = Scorer(self._folder / task, model.tokenizer, settings)
        return self._scorers[task]
