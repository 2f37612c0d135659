"""The pool of passages that rungs are scored on where the corpus is larger: who makes it, and who is scored on it."""

from functools import cached_property
from pathlib import Path
from typing import Any

from trainables.scoring.pool import file_hash
from tuner.data.beir import count_passages
from tuner.errors import RequestError
from tuner.request.config import SearchConfig
from tuner.run_dir.names import pool_file
from tuner.study.study import SearchStudy
from tuner.study.trials import BEST_VALUE


class CandidatePool:
    """What jobs are told of the pool. The base model's job makes it; from then on the study has its hash.

    Args:
        config: The search.
        study: Its trials.
        run_dir: Where the pool's file is.
        eval_data: The BEIR folder that trials are scored on.
    """

    def __init__(self, config: SearchConfig, study: SearchStudy, *, run_dir: Path, eval_data: str) -> None:
        self._size, self._study = config.candidate_pool_size, study
        self._file, self._eval_data = str(pool_file(run_dir)), Path(eval_data)

    @cached_property
    def is_wanted(self) -> bool:
        """Whether the corpus has more passages than rungs are to be scored on, so that trials wait for the pool."""
        return not self._is_late and 0 < self._size < count_passages(self._eval_data)

    @property
    def _is_late(self) -> bool:
        """Whether trials have been scored without a pool, by a version that knew none."""
        trials = (trial.user_attrs for trial in self._study.search.get_trials(deepcopy=False)[1:])
        return not self.is_made and any(BEST_VALUE in known for known in trials)

    @property
    def is_made(self) -> bool:
        """Whether rungs are scored on a pool, so that finalists are scored on the whole corpus once more."""
        return bool(self._study.pool)

    def to_make(self) -> dict[str, Any]:
        """Fields of the base model's job."""
        return {"pool": self._file, "pool_size": self._size} if self.is_wanted else {}

    def to_use(self) -> dict[str, Any]:
        """Fields of a training's job."""
        pool = self._study.pool
        return {"pool": self._file, "pool_hash": pool["hash"]} if pool else {}


def require_pool(study: SearchStudy, run_dir: Path) -> None:
    """Refuses to go on with scores on another pool than the trials so far have.

    Raises:
        RequestError: The pool's file is gone, or another one.
    """
    path, pool = pool_file(run_dir), study.pool
    if pool and file_hash(path) != pool["hash"]:
        raise RequestError(
            [
                f"--resume: {path} must be the pool of passages that the trials so far were scored on (SHA-256 "
                f"{pool['hash'][:12]}), but it is {'another one' if path.exists() else 'not there'}; put it back, or "
                "start a new --run_dir"
            ]
        )
