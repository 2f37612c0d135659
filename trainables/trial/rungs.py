"""Scores, checkpoint, report and training state of a trial at its rungs."""

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainables.config import Progress, Report, RungReport, TrialConfig, TrialInterrupted
from trainables.files import new_folder, write_text
from trainables.m3.base_models import BaseModels
from trainables.m3.runner import Arguments, Model, Runner
from trainables.m3.tokens import fingerprint
from trainables.process import rank, world_size
from trainables.scoring.encoding import EmbeddingModel
from trainables.scoring.measures import Scores
from trainables.scoring.scorer import HEADS, HYBRID_CANDIDATES, HYBRID_WEIGHTS, MEASURES, EncodingSettings, Scorer
from trainables.trial.records import Clock, write_record
from trainables.trial.states import States
from trainables.trial.trial import NonFiniteLoss

logger = logging.getLogger(__name__)

SAVE_SECONDS = 30.0
"""Training that took less is done again rather than saved."""

LOOK_EVERY = 50
"""Steps between looks at the clock, which the workers have to agree on."""

AGREE_EVERY = 8
"""Steps after which several workers ask each other whether they were told to stop."""


class Judge:
    """Scores a trial's model on its held-out split.

    Args:
        config: the trial.
        arguments: lengths, instructions and pooling for scoring are those of training.
        base: where tokenised held-out data is kept between trials.
    """

    def __init__(self, config: TrialConfig, arguments: Arguments, tokenizer: Any, base: BaseModels) -> None:
        self._config = config
        self._heads = HEADS if arguments.training.unified_finetuning else HEADS[:1]
        self._settings = encoding_settings(arguments)
        is_base_encoder = arguments.training.fix_encoder and config.checkpoint is None
        self._frozen_encoder = arguments.model.model_name_or_path if is_base_encoder else None
        self._tokenizer = tokenizer
        self._base = base

    @property
    def _scorer(self) -> Scorer:
        """Of the held-out set, which guards alone do not need."""
        return _kept_scorer(self._config, self._settings, self._tokenizer, self._base)

    def scores(self, model: Model) -> Scores:
        """Returns scores of the heads that the trial trains, and of the objective."""
        split, frozen = self._config.split, self._frozen_encoder
        assert split is not None
        scores = self._scorer.score(model, split, heads=self._heads, frozen_encoder=frozen)
        return scores.with_metric(self._config.metric)

    def final_scores(self, model: EmbeddingModel, folder: Path) -> Scores:
        """Returns scores of all heads that the model has, as mteb judges them.

        mteb knows one vector a text: it judges the dense head, our scorer the others. Its own result JSON is written to
        ``mteb.json`` in `folder`, and weights of a second hybrid score, tuned on dev, to ``hybrid.json``.
        """
        from trainables.scoring.mteb_judge import judge  # mteb takes seconds to import, and only final scores need it

        where, split = Path(self._config.eval_data), self._config.split
        assert split is not None
        scores = judge(model, self._tokenizer, self._settings, where, split, result=folder / "mteb.json")
        if model.sparse_linear is not None:
            weights = self._scorer.tune_hybrid_weights(model, "dev", MEASURES[0], HYBRID_CANDIDATES)
            others = self._scorer.score(model, split, heads=HEADS[1:], tuned_weights=weights)
            scores = replace(scores, per_query=scores.per_query | others.per_query)
            if rank() == 0:
                write_text(
                    folder / "hybrid.json",
                    json.dumps({"default": HYBRID_WEIGHTS._asdict(), "tuned": weights._asdict()}),
                )
        return scores.with_metric(self._config.metric)

    def guard_scores(self, model: Model) -> dict[str, float]:
        """Returns guard task -> main score of the dense head; mteb's results go to ``mteb-TASK.json`` in the folder.

        Raises:
            GuardUnavailable: the data of a task is neither on this machine nor to be had from the hub.
        """
        if not self._config.guards:
            return {}
        from trainables.scoring.mteb_judge import guard_score, guard_task

        scores: dict[str, float] = {}
        for guard in self._config.guards:
            task = self._base.scorers.get(("guard", guard)) or guard_task(guard)
            self._base.scorers["guard", guard] = task  # with its data, for the next model
            result = Path(self._config.directory) / f"mteb-{task.metadata.name}.json"
            scores[task.metadata.name] = guard_score(model, self._tokenizer, self._settings, task, result=result)
        return scores


def encoding_settings(arguments: Arguments) -> EncodingSettings:
    """Returns how texts are encoded for scoring: as in training."""
    data, training = arguments.data, arguments.training
    return EncodingSettings(
        query_max_len=data.query_max_len,
        passage_max_len=data.passage_max_len,
        query_instruction_for_retrieval=data.query_instruction_for_retrieval,
        query_instruction_format=data.query_instruction_format,
        passage_instruction_for_retrieval=data.passage_instruction_for_retrieval,
        passage_instruction_format=data.passage_instruction_format,
        sentence_pooling_method=training.sentence_pooling_method,
        normalize_embeddings=training.normalize_embeddings,
        precision="float16" if training.fp16 else "bfloat16" if training.bf16 else "float32",
    )


def _kept_scorer(config: TrialConfig, settings: EncodingSettings, tokenizer: Any, base: BaseModels) -> Scorer:
    key = (config.eval_data, settings, fingerprint(tokenizer))
    if key not in base.scorers:
        base.scorers[key] = Scorer(Path(config.eval_data), tokenizer, settings)
    scorer: Scorer = base.scorers[key]
    return scorer


class Rungs(TrainerCallback):
    """Scores, checkpoints and reports a trial when it has seen its rungs' shares of the training examples.

    Rung k of fraction f is reached after ceil(f x all steps) optimizer steps.

    Args:
        config: the trial.
        report: see `run_trial`.
        progress: see `run_trial`.
        clock: runs since the trial began.
        batch_size: training rows in one optimizer step, over all workers.
        states: where training states are saved.
    """

    def __init__(
        self,
        config: TrialConfig,
        report: Report,
        progress: Progress | None,
        clock: Clock,
        batch_size: int,
        states: States,
    ) -> None:
        self._config = config
        self._report = report
        self._progress = progress
        self._clock = clock
        self._batch_size = batch_size
        self._folder = Path(config.directory)
        self._done: list[RungReport] = []
        self._states = states
        self._resumed = self._saved = time.perf_counter()
        self.runner: Runner | None = None
        self.judge: Judge | None = None

    def go_on_from(self, done: list[RungReport]) -> None:
        """Leaves out rungs that an earlier process has reported."""
        self._done = list(done)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock of training."""
        self._resumed = self._saved = time.perf_counter()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:  # noqa: ARG002
        """Writes the trainer's figures to the log, and checks the loss while it is on the host anyway."""
        logger.info("step %d of %d: %s", state.global_step, state.max_steps, json.dumps(kwargs["logs"], default=str))
        self._check_loss(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stands at a rung, or goes on."""
        if args.device.type == "cpu" or state.global_step % LOOK_EVERY == 0:  # a GPU is waited for, now and then
            self._check_loss(state.global_step)
        interrupted = self._is_interrupted(state)
        due = self._due(state)
        if due:
            self._clock.add("training", time.perf_counter() - self._resumed)
            control.should_training_stop = not self._stand(due, state) or due[-1] == len(self._config.rungs)
            self._resumed = time.perf_counter()
        if control.should_training_stop:
            return
        if due or interrupted or state.global_step % LOOK_EVERY == 0:
            self._save_state(state.global_step, now=interrupted)
        if interrupted:
            raise TrialInterrupted(f"stopped at step {state.global_step}, as asked")

    def _is_interrupted(self, state: TrainerState) -> bool:
        """Whether a worker was asked to stop; several workers look together, and only now and then."""
        goes_on = self._progress is None or self._progress(state.global_step, state.max_steps) is not False
        if world_size() == 1:
            return not goes_on
        return state.global_step % AGREE_EVERY == 0 and not agree(goes_on)

    def _due(self, state: TrainerState) -> list[int]:
        """Returns the numbers (from 1) of the rungs that this step reaches: several where steps are few."""
        rungs = self._config.rungs
        steps = [math.ceil(fraction * state.max_steps) for fraction in rungs]
        return [k + 1 for k in range(len(self._done), len(rungs)) if state.global_step >= steps[k]]

    def _stand(self, due: list[int], state: TrainerState) -> bool:
        """Scores once, reports every rung that is due; returns whether to go on."""
        assert self.runner is not None
        assert self.judge is not None
        loss = self._mean_loss(state.global_step)
        with self.runner.whole_model() as model:
            with self._clock.measure("scoring"):
                scores = self.judge.scores(model)
                guards = self.judge.guard_scores(model) if due[-1] == len(self._config.rungs) else {}
            self._keep_best(scores, model)
        self._pass_on(scores, guards)
        for number in due:
            self._done.append(self._record(number, state.global_step, loss, scores, guards))
            if not agree(self._report(self._done[-1])):
                return False
        return True

    def _pass_on(self, scores: Scores, guards: Mapping[str, float]) -> None:
        """Hands scores to the trackers that ``report_to`` names, beside the trainer's own curves."""
        assert self.runner is not None
        trainer = self.runner.trainer
        if trainer.args.report_to:
            values = scores.means | {f"guard.{task}": score for task, score in guards.items()}
            own_log_is_due = trainer.control.should_log  # which `log` takes for done
            trainer.log({f"eval_{name}": value for name, value in values.items()})
            trainer.control.should_log = own_log_is_due

    def _save_state(self, step: int, *, now: bool = False) -> None:
        """Saves the training state `now`, or if training anew would cost more than a moment."""
        assert self.runner is not None
        trainer = self.runner.trainer
        if trainer.resumable and agree(now or time.perf_counter() - self._saved >= SAVE_SECONDS):
            started = time.perf_counter()
            self._clock.add("training", started - self._resumed)
            self._states.save(step, trainer.save_state)
            self._saved = self._resumed = time.perf_counter()

    def _record(self, number: int, step: int, loss: float, scores: Scores, guards: Mapping[str, float]) -> RungReport:
        rungs = self._config.rungs
        record = RungReport(
            rung=number,
            fraction=rungs[number - 1],
            step=step,
            examples=step * self._batch_size,
            loss=loss,
            value=scores.means[self._config.metric],
            scores=scores.means,
            last=number == len(rungs),
            guards=guards if number == len(rungs) else {},
            seconds=self._clock.seconds,
        )
        return write_record(self._folder, record)

    def _keep_best(self, scores: Scores, model: Model) -> None:
        best = max((report.value for report in self._done), default=-math.inf)
        if scores.means[self._config.metric] > best and rank() == 0:
            with new_folder(self._folder / "checkpoint") as folder:
                model.save(str(folder))
            write_text(self._folder / f"{scores.split}.json", scores.to_json())

    def _check_loss(self, step: int) -> None:
        assert self.runner is not None
        trainer = self.runner.trainer
        if not math.isfinite(float(trainer.loss_sum)):
            raise NonFiniteLoss(
                f"the training loss must be finite, but it was not at or before step {step}: "
                "lower learning_rate, or raise temperature"
            )

    def _mean_loss(self, step: int) -> float:
        """Returns the mean loss since the rung before, over all workers."""
        assert self.runner is not None
        trainer = self.runner.trainer
        self._check_loss(step)
        mean = trainer.loss_sum / max(trainer.loss_count, 1)
        if world_size() > 1:
            dist.all_reduce(mean)
            mean /= world_size()
        trainer.loss_sum = torch.zeros_like(trainer.loss_sum)
        trainer.loss_count = 0
        return float(mean)


def agree(answer: bool) -> bool:
    """Returns whether every worker answered yes."""
    if world_size() == 1:
        return answer
    answers: list[bool | None] = [None] * world_size()
    dist.all_gather_object(answers, answer)
    return all(answers)
