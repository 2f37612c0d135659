"""Scores, checkpoint, report and training state of a trial at its rungs."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainables.config import Progress, Report, TrialInterrupted
from trainables.files import new_folder, write_text
from trainables.m3.runner import Model, Runner
from trainables.names import CHECKPOINT, scores_file
from trainables.process import agree, rank, world_size
from trainables.scoring.measures import Scores
from trainables.trial.judging import Judge
from trainables.trial.records import Reported
from trainables.trial.saving import Saving

logger = logging.getLogger(__name__)

LOOK_EVERY = 50
"""Steps between looks at the clock, which the workers have to agree on."""

AGREE_EVERY = 8
"""Steps after which several workers ask each other whether they were told to stop."""


class Rungs(TrainerCallback):
    """Scores, checkpoints and reports a trial when it has seen its rungs' shares of the training examples.

    Args:
        reported: the trial's rungs, and its clock.
        report: see `run_trial`.
        progress: see `run_trial`.
        runner: trains the trial; its trainer is to have this callback.
        judge: scores the trial's model.
        saving: of training states.
    """

    def __init__(
        self,
        reported: Reported,
        report: Report,
        progress: Progress | None,
        *,
        runner: Runner,
        judge: Judge,
        saving: Saving,
    ) -> None:
        self._reported, self._config, self._clock = reported, reported.config, reported.clock
        self._report, self._progress = report, progress
        self._runner, self._trainer, self._judge = runner, runner.trainer, judge
        self._saving = saving
        self._resumed = time.perf_counter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock of training."""
        self._resumed = time.perf_counter()
        self._saving.begin()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:  # noqa: ARG002
        """Writes the trainer's figures to the log, and checks the loss while it is on the host anyway."""
        logger.info("step %d of %d: %s", state.global_step, state.max_steps, json.dumps(kwargs["logs"], default=str))
        self._trainer.check_loss()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stands at a rung, or goes on."""
        if args.device.type == "cpu" or state.global_step % LOOK_EVERY == 0:  # a GPU is waited for, now and then
            self._trainer.check_loss()
        interrupted = self._is_interrupted(state)
        due = self._reported.due(state.global_step, state.max_steps)
        if due:
            self._clock.add("training", time.perf_counter() - self._resumed)
            control.should_training_stop = not self._stand(due, state) or self._reported.is_last(due[-1])
            self._resumed = time.perf_counter()
        elif self._reported.was_reported(state.global_step):
            self._trainer.take_mean_loss()  # the next rung's is of the steps after this one
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

    def _stand(self, due: list[int], state: TrainerState) -> bool:
        """Scores once, reports every rung that is due; returns whether to go on."""
        loss = self._trainer.take_mean_loss()
        with self._runner.whole_model() as model:
            with self._clock.measure("scoring"):
                scores = self._judge.rung_scores(model)
                guards = self._judge.guard_scores(model) if self._reported.is_last(due[-1]) else {}
            self._keep_best(scores, model)
        self._pass_on(scores, guards)
        for number in due:
            record = self._reported.add(number, state.global_step, loss, scores, guards)
            if number == due[-1] and not record.last:
                self._save_for_a_pause(state.global_step)
            if not agree(self._report(record)):
                return False
        return True

    def _save_for_a_pause(self, step: int) -> None:
        """Saves the training state before the trial asks whether it goes on: the search keeps what is there by then."""
        if self._config.pauses and self._trainer.resumable and agree(self._saving.is_worth_a_pause):
            self._saving.save(step, self._trainer.capture_state, now=False)
            self._saving.finish()

    def _pass_on(self, scores: Scores, guards: Mapping[str, float]) -> None:
        """Hands scores to the trackers that ``report_to`` names, beside the trainer's own curves."""
        trainer = self._trainer
        if trainer.args.report_to:
            values = scores.means | {f"guard.{task}": score for task, score in guards.items()}
            own_log_is_due = trainer.control.should_log  # which `log` takes for done
            trainer.log({f"eval_{name}": value for name, value in values.items()})
            trainer.control.should_log = own_log_is_due

    def _save_state(self, step: int, *, now: bool = False) -> None:
        """Saves the training state `now`, or if training anew would cost more than saving."""
        trainer = self._trainer
        if trainer.resumable and agree(now or self._saving.is_due):
            self._clock.add("training", time.perf_counter() - self._resumed)
            self._saving.save(step, trainer.capture_state, now=now)
            self._resumed = time.perf_counter()

    def _keep_best(self, scores: Scores, model: Model) -> None:
        if scores.means[self._config.metric] > self._reported.best and rank() == 0:
            own = Path(self._config.directory)
            with new_folder(own / CHECKPOINT) as folder:
                model.save(str(folder))
            pooled = self._config.pool is not None
            write_text(own / scores_file(scores.split, pooled=pooled), scores.to_json())
