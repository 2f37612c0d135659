"""What becomes of the study's trials: Optuna is told of rungs, of ends, and why a trial could not be trained."""

import datetime

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from trainables.config import RungReport
from trainables.scoring.metric import Metric
from tuner.study import guards
from tuner.study.pruners import PausingPruner
from tuner.study.samplers import constrain
from tuner.study.trials import (
    BASE,
    BEST_RUNG,
    BEST_VALUE,
    DUPLICATE_OF,
    EXAMPLES,
    GUARD_EXCESS,
    GUARD_SCORES,
    INFEASIBLE,
    PAUSED,
    PAUSED_SINCE,
    POOL,
    PROMOTED,
    QUERIES,
    RUNG,
    SAMPLED,
    SCORES,
    SECONDS,
    WHOLE_CORPUS,
    explain,
    role_of,
    rung_values,
)

_PRUNED_AT = "pruned_at"


class Telling:
    """Tells a search's study of its trials.

    Args:
        search: The study.
        objective: What is searched for: of two, the study keeps a front, and prunes nothing.
        guard_tolerance: What a guard may lose.
    """

    def __init__(self, search: optuna.Study, *, objective: Metric, guard_tolerance: float) -> None:
        self._search, self._objective, self._guard_tolerance = search, objective, guard_tolerance

    def report(self, trial: Trial, rung: RungReport) -> bool:
        """Records a rung; returns whether the trial goes on. Only sampled trials are pruned."""
        if self._objective.is_pareto:
            trial.set_user_attr(f"{RUNG}_{rung.rung}", rung.value)  # Optuna takes no report of several objectives
        elif rung.rung not in self._frozen(trial).intermediate_values and role_of(trial) != BASE:
            if rung.queries:
                trial.set_user_attr(f"{QUERIES}_{rung.rung}", rung.queries)
            trial.report(rung.value, rung.rung)
        if rung.pool:
            self._search.set_user_attr(POOL, dict(rung.pool))
        value = float(rung.pool.get("value", rung.value))
        best = trial.user_attrs.get(BEST_VALUE)
        if best is None or value > best:
            trial.set_user_attr(BEST_VALUE, value)
            trial.set_user_attr(BEST_RUNG, rung.rung)
            trial.set_user_attr(SCORES, dict(rung.scores))
        trial.set_user_attr(SECONDS, dict(rung.seconds))
        trial.set_user_attr(EXAMPLES, rung.examples)
        if rung.guards:
            trial.set_user_attr(GUARD_SCORES, dict(rung.guards))
        return rung.last or self._objective.is_pareto or role_of(trial) != SAMPLED or self._goes_on(trial, rung.rung)

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

    def on_whole_corpus(self, number: int, rung: RungReport) -> None:
        """Records what trial `number` scores on the whole corpus, its values being those on the pool."""
        known = self._search.user_attrs.get(WHOLE_CORPUS, {})
        scored = {"value": rung.value, "scores": dict(rung.scores)}
        self._search.set_user_attr(WHOLE_CORPUS, {**known, str(number): scored})

    def complete(self, trial: Trial) -> None:
        """The trial's value is its best rung's: those weights are its checkpoint."""
        self._weigh_guards(trial)
        if self._objective.is_pareto:
            self._search.tell(trial, self._objective.values(trial.user_attrs[SCORES]))
        else:
            self._search.tell(trial, trial.user_attrs[BEST_VALUE])

    def _weigh_guards(self, trial: Trial) -> None:
        """A loss beyond the tolerance is a violated constraint. The base model, trial 0, is what it is lost against."""
        base = self._search.get_trials(deepcopy=False)[0].user_attrs.get(GUARD_SCORES)
        scores = trial.user_attrs.get(GUARD_SCORES)
        if base and scores and role_of(trial) != BASE:
            excess = guards.excess(base, scores, self._guard_tolerance)
            trial.set_user_attr(GUARD_EXCESS, excess)
            constrain(trial, GUARD_EXCESS, excess)

    def stopped(self, trial: Trial) -> bool:
        """The pruner stopped the trial, or time did; returns whether it is only paused."""
        rung = trial.user_attrs.get(_PRUNED_AT, 0)
        if not isinstance(self._search.pruner, PausingPruner) or rung < max(rung_values(self._frozen(trial))):
            self.pruned(trial)
            return False
        trial.set_user_attr(PAUSED_SINCE, datetime.datetime.now().isoformat())  # as Optuna's own times
        trial.set_user_attr(PAUSED, rung)
        return True

    def pruned(self, trial: Trial) -> None:
        """The trial ends at its rung."""
        self._search.tell(trial, state=TrialState.PRUNED)

    def failed(self, trial: Trial, kind: str, message: str) -> None:
        """The trial raised."""
        explain(trial, kind, message)
        self._search.tell(trial, state=TrialState.FAIL)

    def unscored(self, trial: Trial, kind: str, message: str) -> None:
        """The base model could not be scored: its trial stays unfinished, and a resume begins with it."""
        explain(trial, kind, message)

    def infeasible(self, trial: Trial, kind: str, message: str) -> None:
        """The trial fits the device in no way, or diverges: a violated constraint, which the sampler learns from."""
        explain(trial, kind, message)
        trial.set_user_attr(INFEASIBLE, True)
        constrain(trial, INFEASIBLE, 1.0)
        self._search.tell(trial, state=TrialState.PRUNED)

    def reuse(self, trial: Trial, earlier: FrozenTrial) -> None:
        """Tells `trial` the end of `earlier`, which had the same parameters."""
        trial.set_user_attr(DUPLICATE_OF, earlier.number)
        for name in ("scores", "best_rung", "best_value", "guard", GUARD_EXCESS, INFEASIBLE, "error_kind", "error"):
            if name in earlier.user_attrs:
                trial.set_user_attr(name, earlier.user_attrs[name])
        for name in (GUARD_EXCESS, INFEASIBLE):
            if name in earlier.user_attrs:
                constrain(trial, name, float(earlier.user_attrs[name]))
        if earlier.state == TrialState.COMPLETE:
            self._search.tell(trial, earlier.values)
        else:
            for step, value in earlier.intermediate_values.items():
                trial.report(value, step)
            self._search.tell(trial, state=TrialState.PRUNED)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self._search.get_trials(deepcopy=False)[trial.number]
