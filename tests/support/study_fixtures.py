"""Studies of a few trials with values chosen by hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

METRIC = "dense.ndcg_at_10"


def make_study(*trials: Mapping[str, Any]) -> optuna.Study:
    """A study of `trials`: value (None: pruned), state and user attributes."""
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        attributes = {"seed": 42, **{name: value for name, value in trial.items() if name not in ("value", "state")}}
        value = trial.get("value")
        trained = attributes.get("role") != "base"
        study.add_trial(
            create_trial(
                state=trial.get("state", TrialState.PRUNED if value is None else TrialState.COMPLETE),
                value=value,
                params={"learning_rate": 1e-5} if trained else {},
                distributions={"learning_rate": FloatDistribution(1e-6, 1e-4, log=True)} if trained else {},
                user_attrs={**attributes, "scores": {METRIC: value} if value is not None else {}},
            )
        )
    return study


def make_retrains(values: Mapping[tuple[int, int], float | None]) -> optuna.Study:
    rows = [{"source": source, "seed": seed, "value": value} for (source, seed), value in values.items()]
    return make_study(*({**row, "state": TrialState.FAIL} if row["value"] is None else row for row in rows))


BASE, USER = {"role": "base", "value": 0.9}, {"role": "user", "value": 0.60}


def make_guarded(run_dir: Path, scores: Mapping[str, Mapping[str, float] | None]) -> Path:
    """Writes the guard scores of models, by folder name."""
    for name, of_model in scores.items():
        if of_model is not None:
            (run_dir / "trials" / name).mkdir(parents=True, exist_ok=True)
            (run_dir / "trials" / name / "guard.json").write_text(json.dumps(of_model))
    return run_dir
