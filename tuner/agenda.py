"""What runs next, and what becomes of it: search, then finalists, then the test set.

The agenda is the driver's side of a search without any Ray in it. An executor asks it for jobs and tells it what came
of them; whatever must outlive the process is in the study.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial, Trial, TrialState

from trainables.config import RungReport, TrialConfig
from tuner import selection
from tuner.arguments import translated
from tuner.config import SECRETS, SearchConfig
from tuner.finals import Finals
from tuner.study import BASE, SAMPLED, USER, SearchStudy

FailureKind = Literal["out_of_memory", "non_finite", "error", "worker_lost"]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job did not end."""

    kind: FailureKind
    message: str
    """The exception in one line."""
    traceback: str = ""


@dataclass(kw_only=True)
class Row:
    """One job as the progress table shows it."""

    name: str
    role: str
    params: Mapping[str, Any]
    state: str = "running"
    rung: int = 0
    step: int = 0
    steps: int = 0
    value: float | None = None
    started: float
    ended: float | None = None


@dataclass(kw_only=True)
class _Running:
    config: TrialConfig
    row: Row
    trial: Trial | None = None
    """The study's trial; None for a job that scores the test set."""
    finalist: bool = False
    stopped: bool = False
    best: float | None = None


class Agenda:
    """Hands out jobs and takes in their rungs and ends.

    Args:
        config: The search.
        study: Its trials.
        run_dir: Where trials' folders are.
        arguments: FlagEmbedding's arguments that hold for every trial, as this machine can honour them.
        eval_data: BEIR folder with dev and test.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        config: SearchConfig,
        study: SearchStudy,
        *,
        run_dir: Path,
        arguments: Mapping[str, Any],
        eval_data: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._study, self._run_dir = config, study, run_dir
        self._arguments, self._eval_data, self._clock = arguments, eval_data, clock
        self._started = clock()
        self._running: dict[str, _Running] = {}
        self._retries: list[_Running] = []
        self._finals = Finals(config, study, run_dir=run_dir, job=self._job)
        self._scorings: list[TrialConfig] = []
        self._base_failed = False
        self._holding = {folder.name for folder in (run_dir / "trials").glob("*")}
        """Folders of trials that may have weights or states on disk."""
        self.rows: list[Row] = []
        self.failures: list[Failure] = []
        self.finished = False

    def next(self) -> TrialConfig | None:
        """Returns the next job, or None when there is none now: wait for a running one, or `finished`."""
        job = None if self._base_failed else self._retry() or self._search_job() or self._after_search()
        if job is None:
            self.finished = not self._running
            return None
        self._running[job.config.name] = job
        self._holding.add(job.config.name)
        self.rows.append(job.row)
        if job.config.rungs:
            _record(job.config)
        return job.config

    @property
    def has_winner(self) -> bool:
        """Whether a trained trial completed, and the base model could be scored."""
        return bool(self._candidates()) and not self._base_failed

    def is_running(self, name: str) -> bool:
        """Whether job `name` was handed out and has not ended."""
        return name in self._running

    def progress(self, name: str, step: int, steps: int) -> None:
        """A worker says how far job `name` is."""
        if job := self._running.get(name):
            job.row.step, job.row.steps = step, steps

    def rung(self, name: str, report: RungReport) -> bool:
        """Takes in a rung of job `name`; returns whether it goes on."""
        job = self._running[name]
        job.row.rung, job.row.step = report.rung, report.step
        job.best = report.value if job.best is None else max(job.best, report.value)
        job.row.value = job.best
        if job.trial is None:
            return True
        if job.finalist:
            job.trial.set_user_attr("seconds", dict(report.seconds))
            return True
        goes_on = self._study.report(job.trial, report)
        job.stopped = not goes_on
        return goes_on

    def ended(self, name: str) -> None:
        """Job `name` did all it was asked, or stopped where it was told to."""
        job = self._close(name, "complete")
        if job.trial is None:
            return
        if job.finalist:
            self._study.finalists.tell(job.trial, job.best)
        elif job.stopped:
            job.row.state = "pruned"
            self._study.pruned(job.trial)
        else:
            self._study.complete(job.trial)
        self._drop_weights()

    def failed(self, name: str, failure: Failure) -> None:
        """Job `name` raised. Too little memory is answered with half the `sub_batch_size`: the same gradients."""
        job = self._close(name, "failed")
        smaller = _smaller_sub_batch(job.config) if failure.kind == "out_of_memory" else None
        if smaller is not None:
            job.row.state = "retried"
            row = self._row(job.row.name, job.row.role, job.row.params)
            self._retries.append(_Running(config=smaller, row=row, trial=job.trial, finalist=job.finalist))
            return
        self.failures.append(failure)
        self._base_failed |= job.row.role == BASE  # nothing can be compared with
        self._log(name, failure)
        if job.trial is None:
            return
        if job.finalist:
            self._study.finalists.tell(job.trial, state=TrialState.FAIL)
        elif failure.kind == "out_of_memory":
            self._study.infeasible(job.trial, failure.message)
        else:
            self._study.failed(job.trial, failure.kind, failure.message)

    def _log(self, name: str, failure: Failure) -> None:
        folder = self._run_dir / "trials" / name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"{failure.message}\n{failure.traceback}\n")

    def _close(self, name: str, state: str) -> _Running:
        job = self._running.pop(name)
        job.row.state, job.row.ended = state, self._clock()
        return job

    def _row(self, name: str, role: str, params: Mapping[str, Any]) -> Row:
        return Row(name=name, role=role, params=params, started=self._clock())

    def _retry(self) -> _Running | None:
        return self._retries.pop(0) if self._retries else None

    # The search

    def _search_job(self) -> _Running | None:
        if self._config.guard_constraint and any(job.row.role == BASE for job in self._running.values()):
            return None  # what is lost on the guards is measured against it
        while self._study.has_unfinished or (self._study.issued < self._config.num_trials and self._time_for_a_trial()):
            trial, params = self._study.ask()
            earlier = self._study.duplicate_of(trial, params)
            if earlier is None:
                return self._trial_job(trial, params)
            self._study.reuse(trial, earlier)
            row = self._row(f"{trial.number:04d}", SAMPLED, params)
            row.value, row.state = earlier.user_attrs.get("best_value"), f"as {earlier.number}"
            self.rows.append(row)
        return None

    def _trial_job(self, trial: Trial, params: Mapping[str, Any]) -> _Running:
        role = self._study.role(trial)
        rungs = () if role == BASE else self._config.rungs
        guards = self._config.guard if self._config.guard_constraint else ()
        config = self._job(f"{trial.number:04d}", params, rungs=rungs, guards=guards)
        trial.set_user_attr("seed", self._config.seed)
        return _Running(config=config, row=self._row(config.name, role, params), trial=trial)

    def _job(self, name: str, params: Mapping[str, Any], *, seed: int | None = None, **kind: Any) -> TrialConfig:
        arguments = translated({**self._arguments, **params, "seed": self._config.seed if seed is None else seed})
        return TrialConfig(
            name=name,
            directory=str(self._run_dir / "trials" / name),
            arguments=arguments,
            eval_data=self._eval_data,
            metric=self._config.metric,
            **kind,
        )

    def _time_for_a_trial(self) -> bool:
        """Whether a trial started now reaches its first rung and leaves the finalists their time."""
        budget, durations = self._config.time_budget_seconds, self._durations()
        if budget is None:
            return True
        left = budget - (self._clock() - self._started)
        if not durations:
            return left > 0
        longest = max(durations)
        retrainings = self._config.finalist_count * self._config.finalist_seeds
        return left > longest * (self._config.rungs[0] + retrainings / self._config.concurrent_trials)

    def _durations(self) -> list[float]:
        rows = (row for row in self.rows if row.state == "complete" and row.role in (USER, SAMPLED))
        return [row.ended - row.started for row in rows if row.ended is not None]

    # Finalists and test

    def _after_search(self) -> _Running | None:
        searching = any(job.trial is not None and not job.finalist for job in self._running.values())
        if searching or not self._candidates():
            return None
        return self._finalist_job() or self._final_job()

    def _candidates(self) -> list[FrozenTrial]:
        numbers = selection.finalists(self._study.search, max(1, self._config.finalist_count))
        trials = self._study.search.get_trials(deepcopy=False)
        return [trials[number] for number in numbers]

    def _finalist_job(self) -> _Running | None:
        if self._config.finalist_count == 0:
            return None
        for source in self._candidates():
            for offset in range(1, self._config.finalist_seeds + 1):
                seed = self._config.seed + offset
                name = f"{source.number:04d}-seed{seed}"
                trial = None if name in self._running else self._study.retraining(source.number, seed)
                if trial is not None:
                    config = self._job(name, source.params, seed=seed, rungs=self._config.rungs)
                    row = self._row(name, "finalist", source.params)
                    return _Running(config=config, row=row, trial=trial, finalist=True)
        return None

    def _final_job(self) -> _Running | None:
        """A stage begins when all of the one before it has ended: it depends on what that found."""
        if not self._scorings and not self._running:
            self._scorings = self._finals.next_stage()
        if not self._scorings:
            return None
        config = self._scorings.pop(0)
        role = "test" if config.split == "test" else "mixtures" if config.alphas else "guards"
        return _Running(config=config, row=self._row(config.name, role, {}))

    def _drop_weights(self) -> None:
        """Weights stay for the user's own settings and for the best trials only; resume state for running ones."""
        keep = max(1, self._config.keep_checkpoints, self._config.finalist_count)
        kept = {f"{n:04d}" for n in selection.finalists(self._study.search, keep)}
        kept |= {f"{number:04d}" for number in [selection.winner(self._study.search, self._study.finalists)] if number}
        kept |= {
            f"{t.number:04d}" for t in self._study.search.get_trials(deepcopy=False) if t.user_attrs.get("role") == USER
        }
        alive = set(self._running) | {f"{number:04d}" for number in self._study.unfinished}
        for name in self._holding - alive:
            folder = self._run_dir / "trials" / name
            shutil.rmtree(folder / "resume", ignore_errors=True)
            if name not in kept:
                shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        self._holding &= kept | alive


def _record(config: TrialConfig) -> None:
    """Leaves in the trial's folder what it was trained with: what the machine could honour, in the installed names."""
    folder = Path(config.directory)
    folder.mkdir(parents=True, exist_ok=True)
    values = config.to_dict()
    values["arguments"] = {name: value for name, value in values["arguments"].items() if name not in SECRETS}
    (folder / "config.json").write_text(json.dumps(values, indent=2, default=str), encoding="utf-8")


def _smaller_sub_batch(config: TrialConfig) -> TrialConfig | None:
    """Returns `config` with half its `sub_batch_size`; None where it is 1 already.

    The first answer to a whole batch that does not fit is half of its passages.
    """
    arguments = dict(config.arguments)
    size = int(arguments.get("sub_batch_size") or 0)
    if size <= 0:
        size = int(arguments["per_device_train_batch_size"]) * int(arguments["train_group_size"])
    if size <= 1:
        return None
    arguments["sub_batch_size"] = size // 2
    return TrialConfig.from_dict({**config.to_dict(), "arguments": arguments})
