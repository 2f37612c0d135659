"""What earlier searches found, as a prior for another one: of other data or another model, it is no result of this.

The best settings of each earlier search are written into the study when it begins, so that it goes on from them where
the earlier run directories are gone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

from tuner.errors import RequestError, counted
from tuner.run_dir.names import CONFIG_FILE, STUDY_FILE
from tuner.run_dir.object_storage import is_url
from tuner.run_dir.store import run_folder
from tuner.study.study import read_studies
from tuner.study.trials import BASE, DUPLICATE_OF, ROLE, arguments_of, value_of

_READ = (CONFIG_FILE, STUDY_FILE)
_BEST = 3
"""Trials of an earlier search that are drawn near."""
_BLIND = ("random", "qmc")
"""Samplers that look at no trial, nor at a lesson."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """The best settings of one earlier search."""

    run_dir: str
    model: str
    """Its base model."""
    trials: int
    """Trained to their end."""
    gain: float
    """Of its best on dev, over its base model."""
    params: tuple[Mapping[str, Any], ...]
    """The arguments of its best trials, best first."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return {**asdict(self), "params": [dict(params) for params in self.params]}

    def sentence(self, sampler: str) -> str:
        """Returns what is said of it where a search with `sampler` begins."""
        best = ", ".join(f"{name} {_short(value)}" for name, value in self.params[0].items())
        used = f"not used (--sampler {sampler} draws near nothing)" if sampler in _BLIND else "drawn near"
        return (
            f"learned from {self.run_dir} ({self.model}, {counted(self.trials, 'trial')}, best {self.gain:+.4f} "
            f"on its dev): {best}; its best settings are {used}, and are no result of this search"
        )


def read_lessons(run_dirs: Sequence[str]) -> list[Lesson]:
    """Returns what each of `run_dirs` found, paths or URLs.

    Raises:
        RequestError: A directory holds no search, or none of its trials came to its end.
    """
    problems, lessons = list[str](), list[Lesson]()
    for run_dir in run_dirs:
        try:
            lessons.append(_lesson(run_dir))
        except RequestError as error:
            problems.extend(error.findings)
    if problems:
        raise RequestError(problems)
    return lessons


def _lesson(run_dir: str) -> Lesson:
    folder = run_folder(run_dir, _READ) if is_url(run_dir) else Path(run_dir)
    config = folder / CONFIG_FILE
    if not config.is_file():
        raise RequestError([f"--warm_start {run_dir}: no search was made there (no config.yaml); name its --run_dir"])
    asked = yaml.safe_load(config.read_text("utf-8"))
    storage = asked.get("storage")
    if storage is None and not (folder / STUDY_FILE).exists():
        raise RequestError([f"--warm_start {run_dir}: its study.db is missing; copy it there, or leave the run out"])
    study, _ = read_studies(folder, storage, asked.get("study_name"))
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = sorted(_trained(complete), key=value_of, reverse=True)
    if not best:
        raise RequestError([f"--warm_start {run_dir}: none of its trials came to its end, so nothing can be learned"])
    arguments = asked.get("arguments") or {}
    base = [value_of(trial) for trial in complete if trial.user_attrs.get(ROLE) == BASE]
    return Lesson(
        run_dir=run_dir,
        model=str(arguments.get("model_name_or_path") or study.user_attrs.get("model") or "the example's model"),
        trials=len(best),
        gain=value_of(best[0]) - (base[0] if base else 0.0),
        params=tuple(arguments_of(trial) for trial in best[:_BEST]),
    )


def _trained(trials: Sequence[FrozenTrial]) -> Iterator[FrozenTrial]:
    yield from (t for t in trials if t.user_attrs.get(ROLE) != BASE and DUPLICATE_OF not in t.user_attrs)


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)
