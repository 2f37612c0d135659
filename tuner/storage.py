"""Where a study is kept, and its one writer's memory of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


def open_storage(url: str | None, run_dir: Path) -> BaseStorage:
    """Returns the storage at `url`: an Optuna URL, a ``.journal`` file (JournalStorage), or None for RUN/study.db."""
    if url is None:
        url = f"sqlite:///{(run_dir / 'study.db').resolve()}"
    if url.endswith((".journal", ".log")) and "://" not in url:
        return optuna.storages.JournalStorage(JournalFileBackend(url))
    return optuna.storages.get_storage(url)


class RememberedStorage(InMemoryStorage):
    """A storage read from memory and written through, for a process that is its only writer.

    Optuna reads every trial at each ask, report and tell; from a database that costs more with every trial that runs.
    Here nothing is read but at the start, and nothing is remembered that the storage did not take.

    Args:
        kept: What is written to. Studies and trials that it has are remembered; later ones of other writers are not.
    """

    def __init__(self, kept: BaseStorage) -> None:
        super().__init__()
        self._kept = kept
        self._kept_studies: dict[int, int] = {}
        self._kept_trials: dict[int, int] = {}
        for study in kept.get_all_studies():
            self._recall(study.study_name, study.directions, study._study_id)

    def _recall(self, name: str, directions: Sequence[StudyDirection], kept_id: int) -> None:
        study = super().create_new_study(directions, name)
        self._kept_studies[study] = kept_id
        for key, value in self._kept.get_study_user_attrs(kept_id).items():
            super().set_study_user_attr(study, key, value)
        for key, value in self._kept.get_study_system_attrs(kept_id).items():
            super().set_study_system_attr(study, key, value)
        for trial in self._kept.get_all_trials(kept_id):
            self._kept_trials[super().create_new_trial(study, trial)] = trial._trial_id

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        kept = self._kept.create_new_study(directions, study_name)
        study = super().create_new_study(directions, study_name)
        self._kept_studies[study] = kept
        return study

    def delete_study(self, study_id: int) -> None:
        self._kept.delete_study(self._kept_studies.pop(study_id))
        super().delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._kept.set_study_user_attr(self._kept_studies[study_id], key, value)
        super().set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._kept.set_study_system_attr(self._kept_studies[study_id], key, value)
        super().set_study_system_attr(study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        kept = self._kept.create_new_trial(self._kept_studies[study_id], template_trial)
        trial = super().create_new_trial(study_id, template_trial)
        self._kept_trials[trial] = kept
        return trial

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._kept.set_trial_param(self._kept_trials[trial_id], param_name, param_value_internal, distribution)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        changed = self._kept.set_trial_state_values(self._kept_trials[trial_id], state, values)
        return changed and super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._kept.set_trial_intermediate_value(self._kept_trials[trial_id], step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._kept.set_trial_user_attr(self._kept_trials[trial_id], key, value)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._kept.set_trial_system_attr(self._kept_trials[trial_id], key, value)
        super().set_trial_system_attr(trial_id, key, value)

    def remove_session(self) -> None:
        self._kept.remove_session()
