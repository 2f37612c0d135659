"""The jobs of a search: what is asked of a slot, how far that is, and which part of the search asked for it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from optuna.trial import FrozenTrial, Trial, TrialState

from trainables.config import RungReport, TrialConfig
from trainables.tally import Position
from tuner.request.arguments import translated
from tuner.request.config import SearchConfig
from tuner.run_dir.names import TRIALS, retraining_name, trial_name
from tuner.schedule.retries import Failure, Tries
from tuner.study.trials import (
    BEST_VALUE,
    SECONDS,
    SEED,
    SOURCE,
    arguments_of,
    is_paused,
    role_of,
    rung_values,
    state_of,
)

FINALIST = "finalist"
"""The role of a retraining's row; those of trials are the study's."""


class Stage(Protocol):
    """A part of a search: which jobs it has, and what their reports mean to it."""

    def next_job(self) -> "Job | None":
        """Returns the next job, or None when there is none now."""

    def close(self) -> bool:
        """Asked when there is no next job: whether none is to come, so that the stage after this one may begin."""

    def rung(self, job: "Job", report: RungReport) -> bool:
        """Takes in a rung of `job`; returns whether it goes on."""

    def ended(self, job: "Job") -> None:
        """Takes in the end of `job`."""

    def gave_up(self, job: "Job", failure: Failure) -> str:
        """Takes in that `job` cannot be done; returns why the search must stop, nothing where it goes on."""


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
    first_step: tuple[float, int] | None = None
    """When a step was first heard of, and which: a trial that is taken up again does not begin at 1."""
    last_step: tuple[float, int] | None = None
    """When it came to the step that it stands at, and which: while it is scored, it stands still."""
    scoring: Position | None = None
    """How far it is with the corpus that it is scored on."""
    value: float | None = None
    """The best of its scores so far, which is what its trial is judged by."""
    scores: list[float] = field(default_factory=list)
    """The objective at each of its rungs."""
    fraction: float = 0.0
    """Share of its training that is done."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By the workers' clocks, as `RungReport` has them."""
    note: str = ""
    """Why nothing moves."""
    started: float
    """When it was handed out."""
    ended: float | None = None

    def reached(self, report: RungReport) -> None:
        """Takes in a rung; the value is the agenda's to set."""
        self.rung, self.step, self.fraction, self.seconds = report.rung, report.step, report.fraction, report.seconds
        if report.scores:  # guards alone have no value of the objective
            self.scores.append(report.value)


def earlier_rows(trials: Iterable[FrozenTrial], config: SearchConfig) -> list[Row]:
    """Returns a row of each trial and retraining that earlier processes of the search have ended or paused.

    Where trials are still to come, other finalists may be retrained than before, and the retrainings are left out.

    Args:
        trials: Those of the study and of its finalists.
        config: The search.
    """
    known = [trial for trial in trials if trial.state.is_finished() or is_paused(trial)]
    searched = [trial for trial in known if SOURCE not in trial.user_attrs]
    return [_earlier_row(trial, config.rungs) for trial in (searched if len(searched) < config.num_trials else known)]


def _earlier_row(trial: FrozenTrial, rungs: Sequence[float]) -> Row:
    source, attributes, values = trial.user_attrs.get(SOURCE), trial.user_attrs, rung_values(trial)
    rung = max(values, default=0)
    seconds, best = attributes.get(SECONDS) or {}, attributes.get(BEST_VALUE)
    return Row(
        name=trial_name(trial.number) if source is None else retraining_name(source, attributes[SEED]),
        role=role_of(trial) if source is None else FINALIST,
        params=arguments_of(trial),
        state=state_of(trial),
        rung=rung,
        value=max(values.values(), default=None) if best is None else best,
        scores=[values[each] for each in sorted(values)] or ([] if best is None else [best]),
        fraction=1.0 if trial.state == TrialState.COMPLETE else rungs[rung - 1] if rung else 0.0,
        seconds=seconds,
        started=0.0,
        ended=sum(seconds.values()),
    )


def standing_rows(rows: Iterable[Row]) -> list[Row]:
    """Returns the rows that say how a job stands: where a paused trial was promoted, the row that goes on with it.

    Until it has come to a rung of its own, it has the scores that the trial paused with.
    """
    rows = list(rows)
    last = {(row.name, row.role): row for row in rows}
    paused: dict[tuple[str, str], Row] = {}
    found = []
    for row in rows:
        key = row.name, row.role
        if row.state == "paused" and last[key] is not row:
            paused[key] = row
        else:
            found.append(_gone_on(row, paused.get(key)))
    return found


def _gone_on(row: Row, paused: Row | None) -> Row:
    if paused is None or row.rung:
        return row
    return replace(
        row,
        rung=paused.rung,
        value=paused.value,
        scores=paused.scores,
        fraction=paused.fraction,
        seconds=paused.seconds,
    )


@dataclass(kw_only=True)
class Job:
    """A job that was handed out, or is to be handed out again."""

    config: TrialConfig
    row: Row
    stage: Stage
    """Whose job it is."""
    trial: Trial | None = None
    """The study's trial; None for a job that scores when the search is over."""
    stopped: bool = False
    best: float | None = None
    tries: Tries = field(default_factory=Tries)

    @property
    def told(self) -> Trial:
        """The study's trial, which is told of the job's end."""
        assert self.trial is not None, f"{self.config.name} has no trial"
        return self.trial


@dataclass(frozen=True, kw_only=True)
class TrialConfigs:
    """Makes configurations of jobs from what all of a search's have in common."""

    search: SearchConfig
    run_dir: Path
    arguments: Mapping[str, Any]
    """FlagEmbedding's, as this machine can honour them."""
    eval_data: str
    """BEIR folder with dev and test."""
    keeps_stopped: bool = True
    """Whether the run directory keeps the training state of a trial that is stopped."""

    def make(self, name: str, params: Mapping[str, Any], *, seed: int | None = None, **fields: Any) -> TrialConfig:
        """Returns the configuration of a job.

        Args:
            name: Of its folder.
            params: What it varies.
            seed: None: the search's.
            fields: Other fields of `TrialConfig`.
        """
        own = {**params, "seed": self.search.seed if seed is None else seed}
        return TrialConfig(
            name=name,
            directory=str(self.run_dir / TRIALS / name),
            arguments=translated({**self.arguments, **own}),
            eval_data=self.eval_data,
            metric=self.search.metric,
            workers=self.search.workers,
            **fields,
        )


class Jobs:
    """Those that run, those that are to be tried again, and a row of each that was handed out.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running: dict[str, Job] = {}
        self._waiting: list[Job] = []
        self._placed = -math.inf
        """When a job that had a worker group last ended."""
        self.rows: list[Row] = []

    @property
    def running(self) -> Mapping[str, Job]:
        """Jobs that were handed out and have not ended, by name."""
        return self._running

    @property
    def open(self) -> list[Job]:
        """Running jobs, and those that are to be tried again."""
        return [*self._running.values(), *self._waiting]

    def of(self, stage: Stage) -> list[Job]:
        """Returns the open jobs of `stage`."""
        return [job for job in self.open if job.stage is stage]

    def row(self, name: str, role: str, params: Mapping[str, Any]) -> Row:
        """Returns a row of something that begins now; it is not shown yet."""
        return Row(name=name, role=role, params=params, started=self._clock())

    def hand_out(self, job: Job) -> None:
        """`job` begins: one that is tried again may have waited for long."""
        self._running[job.config.name] = job
        job.row.started = self._clock()
        self.rows.append(job.row)

    def moved(self, name: str, step: int, steps: int, scoring: Position | None, note: str) -> None:
        """Job `name` says how far it is, in its training and in a corpus that it scores, or why it does not move."""
        if job := self._running.get(name):
            if step != job.row.step:
                job.row.last_step = self._clock(), step
            job.row.step, job.row.steps = step, steps
            if step and job.row.first_step is None:
                job.row.first_step = self._clock(), step
            job.row.scoring, job.row.note = scoring, note

    def end(self, name: str, state: str, *, had_group: bool = True) -> Job:
        """Job `name` runs no longer; returns it."""
        job = self._running.pop(name)
        job.row.state, job.row.ended = state, self._clock()
        if had_group:
            self._placed = job.row.ended
        return job

    def try_again(self, job: Job, config: TrialConfig) -> None:
        """Keeps `job`, which has ended, for another attempt, or for what follows, by `config`."""
        row = self.row(job.row.name, job.row.role, job.row.params)
        self._waiting.append(replace(job, config=config, row=row, stopped=False, best=None))

    def next_attempt(self) -> Job | None:
        """Returns the job that has waited longest to be tried again."""
        return self._waiting.pop(0) if self._waiting else None

    def others_had_a_group(self, job: Job) -> bool:
        """Whether what `job` waited for was, or is, held by another job or by the group that it left behind."""
        has_group = any(not other.row.note for other in self._running.values())
        return has_group or self._placed > job.row.started
