"""The Optuna study: the one place where a search is kept.

Two studies share a storage: ``search`` holds the trials, ``finalists`` the retrainings of the best with other seeds.
"""

import functools
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from search_spaces.context import Context, SearchSpace
from search_spaces.loading import suggest
from tuner.request.config import SearchConfig
from tuner.run_dir.names import trial_name
from tuner.study.priors import LESSONS
from tuner.study.pruners import PausedTrials, make_pruner
from tuner.study.samplers import draw_again, make_sampler
from tuner.study.stopping import no_longer_pays
from tuner.study.storage import RememberedStorage, open_storage, readable
from tuner.study.strategy import Strategy, strategy_of
from tuner.study.telling import Telling
from tuner.study.trials import (
    ARGUMENTS,
    BASE,
    ERROR_KIND,
    POOL,
    ROLE,
    SAMPLED,
    SECONDS,
    SEED,
    SOURCE,
    USER,
    arguments_of,
    explain,
    is_paused,
    role_of,
)

SEARCH, FINALISTS = "search", "finalists"
_NO_FINALIST = "no_finalist"

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class SearchStudy:
    """The trials of one search: asked for here, and told of by `tell`.

    Args:
        storage: Where the study is, or is to be.
        config: The search.
        space: What it varies.
        context: What the space may know, the user's own settings among it.
        lessons: What earlier searches have found, for one that begins.
        strategy: How the study decides. None: as `config` says.
    """

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        config: SearchConfig,
        *,
        space: SearchSpace,
        context: Context,
        lessons: Sequence[Mapping[str, Any]] = (),
        strategy: Strategy | None = None,
    ) -> None:
        self._space, self._context = space, context
        strategy = strategy or strategy_of(config)
        names = study_names(config.study_name)
        opened = functools.partial(optuna.create_study, storage=RememberedStorage(storage, names), load_if_exists=True)
        directions = [StudyDirection.MAXIMIZE] * len(config.objective.names)
        self.search = opened(study_name=names[0], directions=directions, pruner=make_pruner(strategy))
        self.search.set_metric_names(list(config.objective.names))
        self.finalists = opened(study_name=names[1], direction="maximize")
        self.finalists.set_metric_names([", ".join(config.objective.names)])
        if lessons and LESSONS not in self.search.user_attrs:
            self.search.set_user_attr(LESSONS, list(lessons))
        self._sampler = functools.partial(
            make_sampler,
            strategy,
            seed=config.seed,
            trials=config.num_trials,
            lessons=self.search.user_attrs.get(LESSONS, ()),
        )
        running = self.search.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._unfinished = [trial for trial in running if not is_paused(trial)]
        self.tell = Telling(self.search, objective=config.objective, guard_tolerance=config.guard_tolerance)
        self.paused, self.retrainings = PausedTrials(self.search), Retrainings(self.finalists)
        self._enqueue_first()

    def _enqueue_first(self) -> None:
        """The base model and the user's own settings come first."""
        known = {trial.user_attrs.get(ROLE) for trial in self.search.get_trials(deepcopy=False)}
        for role, params in ((BASE, {}), (USER, dict(self._context.start))):
            if role not in known:
                self.search.enqueue_trial(params, user_attrs={ROLE: role})

    @property
    def spent(self) -> float:
        """Seconds that the search has taken, all of its processes together."""
        return float(self.search.user_attrs.get(SECONDS, 0.0))

    @spent.setter
    def spent(self, seconds: float) -> None:
        self.search.set_user_attr(SECONDS, seconds)

    @property
    def trials(self) -> list[FrozenTrial]:
        """Those of the search and the finalists' retrainings."""
        return [*self.search.get_trials(deepcopy=False), *self.finalists.get_trials(deepcopy=False)]

    @property
    def pool(self) -> Mapping[str, Any]:
        """The pool of passages that rungs are scored on; empty where that is the whole corpus."""
        return dict(self.search.user_attrs.get(POOL, {}))

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

    def no_longer_pays(self, *, left: int, patience: int) -> str:
        """Returns why no further trial is worth its time; see `tuner.study.stopping`."""
        return no_longer_pays(self.search.get_trials(deepcopy=False), left=left, patience=patience)

    def ask(self) -> tuple[Trial, dict[str, Any]]:
        """Returns the next trial and the arguments it varies: an unfinished one first, under its own number."""
        unfinished = self._unfinished.pop(0) if self._unfinished else None
        self.search.sampler = self._sampler(number=unfinished.number if unfinished else self.issued)
        trial = self._again(unfinished) if unfinished else self.search.ask()
        if role_of(trial) == BASE:
            return trial, {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user's own value may lie outside of a range
            suggested = suggest(self._space, trial, self._context)
        return trial, _written_down(trial, self._own(suggested) if role_of(trial) == USER else suggested)

    def _own(self, suggested: Mapping[str, Any]) -> dict[str, Any]:
        """The user's settings, also of what the space derives from others."""
        return {name: self._context.start[name] for name in suggested if name in self._context.start}

    def _again(self, known: FrozenTrial) -> Trial:
        trial = Trial(self.search, known._trial_id)
        if role_of(trial) == SAMPLED:
            draw_again(self.search.sampler, trial, known)
        return trial

    @property
    def unfinished_names(self) -> set[str]:
        """Folders of the trials and retrainings of a broken search that wait to be taken up again."""
        return self.retrainings.unfinished_names | {trial_name(trial.number) for trial in self._unfinished}

    @property
    def has_unfinished(self) -> bool:
        """A trial of a broken search waits to be taken up again."""
        return bool(self._unfinished)

    def duplicate_of(self, trial: Trial, params: Mapping[str, Any]) -> FrozenTrial | None:
        """Returns an earlier finished trial with the same arguments `params`."""
        if role_of(trial) == BASE:
            return None
        done = self.search.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return next((t for t in done if t.number < trial.number and t.params and arguments_of(t) == dict(params)), None)


def _written_down(trial: Trial, arguments: dict[str, Any]) -> dict[str, Any]:
    """Keeps arguments with a trial where they are not what was suggested, and returns them."""
    if arguments != trial.params:
        trial.set_user_attr(ARGUMENTS, arguments)
    return arguments


class Retrainings:
    """The best trials, trained again with other seeds.

    Args:
        study: Its trials are the retrainings; each knows its source among the search's trials, and its seed.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def open(self, source: int, seed: int) -> Trial | None:
        """Returns the trial for retraining trial `source` of the search with `seed`; None where it is done."""
        for known in self._study.get_trials(deepcopy=False):
            if known.user_attrs.get(ERROR_KIND) == _NO_FINALIST:
                continue
            if known.user_attrs.get(SOURCE) == source and known.user_attrs.get(SEED) == seed:
                return None if known.state.is_finished() else Trial(self._study, known._trial_id)
        trial = self._study.ask()
        trial.set_user_attr(SOURCE, source)
        trial.set_user_attr(SEED, seed)
        return trial

    def complete(self, trial: Trial, value: float | None) -> None:
        """Tells the study of a retraining's value, its best rung's."""
        self._study.tell(trial, value)

    def failed(self, trial: Trial) -> None:
        """Tells the study of a retraining that could not be done."""
        self._study.tell(trial, state=TrialState.FAIL)

    @property
    def unfinished_names(self) -> set[str]:
        """Folders of those of a broken search, and of those that run."""
        attrs = [trial.user_attrs for trial in self._running()]
        return {f"{known['source']:04d}-seed{known['seed']}" for known in attrs if "seed" in known}

    def give_up(self, finalists: Collection[int]) -> bool:
        """Ends those of a broken search whose trials are not among `finalists` any more; whether there were."""
        left = [trial for trial in self._running() if trial.user_attrs.get(SOURCE) not in finalists]
        for known in left:
            trial = Trial(self._study, known._trial_id)
            explain(trial, _NO_FINALIST, "no finalist any more")
            self._study.tell(trial, state=TrialState.FAIL)
        return bool(left)

    def _running(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


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
