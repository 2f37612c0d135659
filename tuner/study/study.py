"""The Optuna study: the one place where a search is kept.

Two studies share a storage: ``search`` holds the trials, ``finalists`` the retrainings of the best with other seeds.
"""

import functools
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from search_spaces.context import Context, SearchSpace
from search_spaces.loading import suggest
from trainables.config import RungReport
from trainables.scoring.measures import combined
from tuner.errors import AnotherSearchError, RequestError
from tuner.study import guards
from tuner.study.priors import LESSONS
from tuner.study.pruners import PausingPruner, make_pruner
from tuner.study.samplers import as_ended, constrain, draw_again, make_sampler
from tuner.study.stopping import no_longer_pays
from tuner.study.storage import RememberedStorage, open_storage, readable
from tuner.study.strategy import Strategy
from tuner.study.trials import (
    ARGUMENTS,
    BASE,
    ENDED_EARLY,
    GUARD_EXCESS,
    INFEASIBLE,
    PAUSED,
    PROMOTED,
    QUERIES,
    ROLE,
    SAMPLED,
    USER,
    is_paused,
)

SEARCH, FINALISTS = "search", "finalists"
_PRUNED_AT = "pruned_at"
_NO_FINALIST = "no_finalist"

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def has_failed(trial: FrozenTrial) -> bool:
    """Whether the trial could not be trained: it raised, or the sampler is told of it as a violated constraint."""
    return trial.state == TrialState.FAIL or bool(trial.user_attrs.get(INFEASIBLE))


def value_of(trial: FrozenTrial) -> float:
    """Returns the one value that ranks a complete trial: its objective, or the mean of several."""
    return float(trial.values[0] if len(trial.values) == 1 else trial.user_attrs["best_value"])


def _standing(trial: FrozenTrial) -> tuple[int, float]:
    rung = trial.user_attrs[PAUSED]
    return rung, trial.intermediate_values[rung]


def arguments_of(trial: FrozenTrial) -> dict[str, Any]:
    """Returns what `trial` varies, as its space returned it."""
    return dict(trial.user_attrs.get(ARGUMENTS, trial.params))


class SearchStudy:
    """The trials of one search, asked and told."""

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        *,
        space: SearchSpace,
        context: Context,
        strategy: Strategy,
        seed: int,
        num_trials: int,
        objectives: Sequence[str],
        guard_tolerance: float,
        name: str | None = None,
        lessons: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._space, self._context = space, context
        self._objectives, self._guard_tolerance = objectives, guard_tolerance
        search, finalists = study_names(name)
        storage = RememberedStorage(storage, (search, finalists))
        self.search = optuna.create_study(
            storage=storage,
            study_name=search,
            directions=["maximize"] * len(objectives),
            pruner=make_pruner(strategy),
            load_if_exists=True,
        )
        self.search.set_metric_names(list(objectives))
        if lessons and LESSONS not in self.search.user_attrs:
            self.search.set_user_attr(LESSONS, list(lessons))
        self._sampler = functools.partial(
            make_sampler, strategy, seed=seed, trials=num_trials, warm=LESSONS in self.search.user_attrs
        )
        self.finalists = optuna.create_study(
            storage=storage, study_name=finalists, direction="maximize", load_if_exists=True
        )
        self.finalists.set_metric_names([", ".join(objectives)])
        running = self.search.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._unfinished = [trial for trial in running if not is_paused(trial)]
        known = {trial.user_attrs.get(ROLE) for trial in self.search.get_trials(deepcopy=False)}
        for role, params in ((BASE, {}), (USER, dict(context.start))):
            if role not in known:
                self.search.enqueue_trial(params, user_attrs={ROLE: role})

    def claim(self, facts: Mapping[str, Any]) -> None:
        """Writes down what the search is over, or refuses to go on over something else.

        Raises:
            RequestError: A fact differs from what the study holds.
        """
        _refuse_others(facts, self.search.user_attrs)
        for name, value in facts.items():
            self.search.set_user_attr(name, value)

    @property
    def spent(self) -> float:
        """Seconds that the search has taken, all of its processes together."""
        return float(self.search.user_attrs.get("seconds", 0.0))

    @spent.setter
    def spent(self, seconds: float) -> None:
        self.search.set_user_attr("seconds", seconds)

    @property
    def trials(self) -> list[FrozenTrial]:
        """Those of the search and the finalists' retrainings."""
        return [*self.search.get_trials(deepcopy=False), *self.finalists.get_trials(deepcopy=False)]

    @property
    def users(self) -> list[int]:
        """Numbers of the trials of the user's own settings."""
        trials = self.search.get_trials(deepcopy=False)
        return [trial.number for trial in trials if trial.user_attrs.get(ROLE) == USER]

    @property
    def issued(self) -> int:
        """Trials that were handed out, the unfinished ones of a broken search included."""
        waiting = (TrialState.WAITING,)
        return len(self.search.get_trials(deepcopy=False)) - len(self.search.get_trials(deepcopy=False, states=waiting))

    @property
    def paused(self) -> list[FrozenTrial]:
        """Trials that stand at a rung and may be promoted, those at the latest rung first and the best of it."""
        running = self.search.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return sorted((trial for trial in running if is_paused(trial)), key=_standing, reverse=True)

    def promote(self, *, closing: bool) -> tuple[Trial, dict[str, Any]] | None:
        """Takes up a paused trial that may go on by now; None where there is none.

        Args:
            closing: Nothing else is to come, so that the best at each rung goes on, however few there are.
        """
        pruner = self.search.pruner
        if not isinstance(pruner, PausingPruner):
            return None
        for known in self.paused:
            if pruner.promotes(self.search, known, least=int(closing)):
                trial = Trial(self.search, known._trial_id)
                trial.set_user_attr(PROMOTED, known.user_attrs[PAUSED])
                trial.set_user_attr(PAUSED, 0)
                return trial, arguments_of(known)
        return None

    def no_longer_pays(self, *, left: int, patience: int) -> str:
        """Returns why no further trial is worth its time (`tuner.study.stopping`), and writes it down."""
        trials = [as_ended(trial) for trial in self.search.get_trials(deepcopy=False)]
        why = no_longer_pays(trials, left=left, patience=patience)
        if why:
            self.search.set_user_attr(ENDED_EARLY, why)
        return why

    def stop_paused(self) -> None:
        """Ends the trials that wait to be promoted: the search is over."""
        for known in self.paused:
            self.search.tell(known.number, state=TrialState.PRUNED)

    def ask(self) -> tuple[Trial, dict[str, Any]]:
        """Returns the next trial and the arguments it varies: an unfinished one first, under its own number."""
        unfinished = self._unfinished.pop(0) if self._unfinished else None
        self.search.sampler = self._sampler(number=unfinished.number if unfinished else self.issued)
        trial = self._again(unfinished) if unfinished else self.search.ask()
        if self.role(trial) == BASE:
            return trial, {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user's own value may lie outside of a range
            suggested = suggest(self._space, trial, self._context)
        return trial, self._written_down(trial, self._own(suggested) if self.role(trial) == USER else suggested)

    def _own(self, suggested: Mapping[str, Any]) -> dict[str, Any]:
        """The user's settings, also of what the space derives from others."""
        return {name: self._context.start[name] for name in suggested if name in self._context.start}

    @staticmethod
    def _written_down(trial: Trial, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments != trial.params:
            trial.set_user_attr(ARGUMENTS, arguments)
        return arguments

    def _again(self, known: FrozenTrial) -> Trial:
        trial = Trial(self.search, known._trial_id)
        if self.role(trial) == SAMPLED:
            draw_again(self.search.sampler, trial, known)
        return trial

    @property
    def unfinished_names(self) -> set[str]:
        """Folders of the trials and retrainings of a broken search that wait to be taken up again."""
        retrainings = self.finalists.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        sources = [trial.user_attrs for trial in retrainings if "seed" in trial.user_attrs]
        names = {f"{known['source']:04d}-seed{known['seed']}" for known in sources}
        return names | {f"{trial.number:04d}" for trial in self._unfinished}

    @property
    def next_names(self) -> set[str]:
        """Folders of the paused trials that are promoted next, one a rung: others are trained from their start."""
        best = {trial.user_attrs[PAUSED]: trial for trial in reversed(self.paused)}
        return {f"{trial.number:04d}" for trial in best.values()}

    @property
    def has_unfinished(self) -> bool:
        """A trial of a broken search waits to be taken up again."""
        return bool(self._unfinished)

    @staticmethod
    def role(trial: Trial) -> str:
        """``base``, ``user`` or ``sampled``."""
        return str(trial.user_attrs.get(ROLE, SAMPLED))

    def duplicate_of(self, trial: Trial, params: Mapping[str, Any]) -> FrozenTrial | None:
        """Returns an earlier finished trial with the same arguments `params`."""
        if self.role(trial) == BASE:
            return None
        done = self.search.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return next((t for t in done if t.number < trial.number and t.params and arguments_of(t) == dict(params)), None)

    def reuse(self, trial: Trial, earlier: FrozenTrial) -> None:
        """Tells `trial` the end of `earlier`, which had the same parameters."""
        trial.set_user_attr("duplicate_of", earlier.number)
        for name in ("scores", "best_rung", "best_value", "guard", GUARD_EXCESS, INFEASIBLE, "error_kind", "error"):
            if name in earlier.user_attrs:
                trial.set_user_attr(name, earlier.user_attrs[name])
        for name in (GUARD_EXCESS, INFEASIBLE):
            if name in earlier.user_attrs:
                constrain(trial, name, float(earlier.user_attrs[name]))
        if earlier.state == TrialState.COMPLETE:
            self.search.tell(trial, earlier.values)
        else:
            for step, value in earlier.intermediate_values.items():
                trial.report(value, step)
            self.search.tell(trial, state=TrialState.PRUNED)

    def report(self, trial: Trial, rung: RungReport) -> bool:
        """Records a rung; returns whether the trial goes on. Only sampled trials are pruned."""
        if self.is_pareto:
            trial.set_user_attr(f"rung_{rung.rung}", rung.value)  # Optuna takes no report of several objectives
        elif rung.rung not in self._frozen(trial).intermediate_values and self.role(trial) != BASE:
            if rung.queries:
                trial.set_user_attr(f"{QUERIES}_{rung.rung}", rung.queries)
            trial.report(rung.value, rung.rung)
        best = trial.user_attrs.get("best_value")
        if best is None or rung.value > best:
            trial.set_user_attr("best_value", rung.value)
            trial.set_user_attr("best_rung", rung.rung)
            trial.set_user_attr("scores", dict(rung.scores))
        trial.set_user_attr("seconds", dict(rung.seconds))
        trial.set_user_attr("examples", rung.examples)
        if rung.guards:
            trial.set_user_attr("guard", dict(rung.guards))
        return rung.last or self.is_pareto or self.role(trial) != SAMPLED or self._goes_on(trial, rung.rung)

    def _goes_on(self, trial: Trial, rung: int) -> bool:
        """Asks the pruner, which answers a rung once: told again by a trial taken up again, it is as it was."""
        if trial.user_attrs.get(_PRUNED_AT) == rung and rung > trial.user_attrs.get(PROMOTED, 0):
            return False
        if (
            rung <= trial.user_attrs.get(PROMOTED, 0)
            or max(self._frozen(trial).intermediate_values, default=rung) > rung
        ):
            return True
        pruned = trial.should_prune()
        if pruned:
            trial.set_user_attr(_PRUNED_AT, rung)
        return not pruned

    @property
    def is_pareto(self) -> bool:
        """Two objectives: the study keeps a front, and prunes nothing."""
        return len(self._objectives) > 1

    def complete(self, trial: Trial) -> None:
        """The trial's value is its best rung's: those weights are its checkpoint."""
        self._weigh_guards(trial)
        if self.is_pareto:
            self.search.tell(trial, combined(",".join(self._objectives), trial.user_attrs["scores"]))
        else:
            self.search.tell(trial, trial.user_attrs["best_value"])

    def _weigh_guards(self, trial: Trial) -> None:
        """A loss beyond the tolerance is a violated constraint. The base model, trial 0, is what it is lost against."""
        base = self.search.get_trials(deepcopy=False)[0].user_attrs.get("guard")
        scores = trial.user_attrs.get("guard")
        if base and scores and self.role(trial) != BASE:
            excess = guards.excess(base, scores, self._guard_tolerance)
            trial.set_user_attr(GUARD_EXCESS, excess)
            constrain(trial, GUARD_EXCESS, excess)

    def stopped(self, trial: Trial) -> bool:
        """The pruner stopped the trial; returns whether it is only paused."""
        rung = trial.user_attrs.get(_PRUNED_AT, 0)
        if not isinstance(self.search.pruner, PausingPruner) or rung < max(self._frozen(trial).intermediate_values):
            self.pruned(trial)
            return False
        trial.set_user_attr(PAUSED, rung)
        return True

    def pruned(self, trial: Trial) -> None:
        """The trial ends at its rung."""
        self.search.tell(trial, state=TrialState.PRUNED)

    def retried(self, trial: Trial, kind: str, message: str) -> None:
        """An attempt at the trial, or at a retraining, did not end, and it is taken up again."""
        trial.set_user_attr("retries", [*trial.user_attrs.get("retries", []), f"{kind}: {message[:1000]}"])

    def failed(self, trial: Trial, kind: str, message: str) -> None:
        """The trial raised."""
        self._explain(trial, kind, message)
        self.search.tell(trial, state=TrialState.FAIL)

    def unscored(self, trial: Trial, kind: str, message: str) -> None:
        """The base model could not be scored: its trial stays unfinished, and a resume begins with it."""
        self._explain(trial, kind, message)

    def infeasible(self, trial: Trial, kind: str, message: str) -> None:
        """The trial fits the device in no way, or diverges: a violated constraint, which the sampler learns from."""
        self._explain(trial, kind, message)
        trial.set_user_attr(INFEASIBLE, True)
        constrain(trial, INFEASIBLE, 1.0)
        self.search.tell(trial, state=TrialState.PRUNED)

    def _explain(self, trial: Trial, kind: str, message: str) -> None:
        trial.set_user_attr("error_kind", kind)
        trial.set_user_attr("error", message[:4000])

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.search.get_trials(deepcopy=False)[trial.number]

    def retraining(self, source: int, seed: int) -> Trial | None:
        """Returns the finalists' trial for retraining trial `source` with `seed`; None where it is done."""
        for known in self.finalists.get_trials(deepcopy=False):
            if known.user_attrs.get("error_kind") == _NO_FINALIST:
                continue
            if known.user_attrs.get("source") == source and known.user_attrs.get("seed") == seed:
                return None if known.state.is_finished() else Trial(self.finalists, known._trial_id)
        trial = self.finalists.ask()
        trial.set_user_attr("source", source)
        trial.set_user_attr("seed", seed)
        return trial

    def give_up_retrainings(self, finalists: Collection[int]) -> bool:
        """Ends retrainings of a broken search whose trials are not among `finalists` any more; whether there were."""
        running = self.finalists.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        left = [trial for trial in running if trial.user_attrs.get("source") not in finalists]
        for known in left:
            trial = Trial(self.finalists, known._trial_id)
            self._explain(trial, _NO_FINALIST, "no finalist any more")
            self.finalists.tell(trial, state=TrialState.FAIL)
        return bool(left)


def require_untaken(storage: optuna.storages.BaseStorage, name: str | None) -> None:
    """Refuses a study that another search has begun: two would hand out the same trials.

    Args:
        storage: Where studies are.
        name: ``--study_name`` of a search that begins.

    Raises:
        RequestError: The study of that name has trials.
    """
    search, _ = study_names(name)
    if search not in optuna.get_all_study_names(storage):
        return
    trials = optuna.load_study(study_name=search, storage=storage).get_trials(deepcopy=False)
    begun = sum(trial.state != TrialState.WAITING for trial in trials)
    if begun:
        raise RequestError(
            [
                f"--study_name {search}: the storage has a study of that name with {begun} trials; take it up with "
                "--resume and its run directory, or give another --study_name"
            ]
        )


def check_claim(facts: Mapping[str, Any], run_dir: Path, storage: str | None, name: str | None) -> None:
    """Refuses what `SearchStudy.claim` would refuse, and leaves the study as it is.

    Args:
        facts: What the search is over now.
        run_dir: The run directory.
        storage: The storage URL where it is not RUN/study.db.
        name: ``--study_name`` of the search.

    Raises:
        AnotherSearchError: A fact differs from what the study holds.
        RequestError: The storage cannot be read.
    """
    if storage is None and not (run_dir / "study.db").exists():
        return
    opened = open_storage(storage, run_dir)
    with readable(storage):
        if study_names(name)[0] in optuna.get_all_study_names(opened):
            _refuse_others(facts, optuna.load_study(study_name=study_names(name)[0], storage=opened).user_attrs)


def _refuse_others(facts: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    differing = [line for name, value in facts.items() if name in known for line in _changes(name, known[name], value)]
    if differing:
        raise AnotherSearchError(differing)


def _changes(name: str, before: Any, now: Any) -> Iterator[str]:
    """One line for a fact that changed; for a mapping, one for each of its names."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for part in sorted({*before, *now}):
            yield from _changes(part, before.get(part, "the default"), now.get(part, "the default"))
    elif before != now:
        yield f"--resume: {name} was {before} when the search began and is {now} now; start a new --run_dir"


def study_names(name: str | None) -> tuple[str, str]:
    """Returns the names of the search's study and of its finalists'; None: those of a file of the search's own."""
    return (SEARCH, FINALISTS) if name is None else (name, f"{name}-{FINALISTS}")


def read_studies(
    run_dir: Path, storage: str | None = None, name: str | None = None
) -> tuple[optuna.Study, optuna.Study]:
    """Returns the search and the finalists' retrainings of a run, to read.

    Args:
        run_dir: The run directory.
        storage: The storage URL where it is not RUN/study.db.
        name: ``--study_name`` of the search.

    Raises:
        RequestError: The storage cannot be read.
    """
    opened = open_storage(storage, run_dir)
    search, finalists = study_names(name)
    with readable(storage):
        return optuna.load_study(study_name=search, storage=opened), optuna.load_study(
            study_name=finalists, storage=opened
        )
