"""The finalists: the best trials are trained again with other seeds, before one of them is called the winner."""

from dataclasses import replace

from trainables.config import RungReport, TrialConfig
from trainables.names import CHECKPOINT
from tuner.request.config import SearchConfig
from tuner.run_dir.names import retraining_name
from tuner.schedule.jobs import Job, Jobs, TrialConfigs
from tuner.schedule.pool import CandidatePool
from tuner.schedule.retries import Failure
from tuner.schedule.time_budget import TimeBudget
from tuner.schedule.weights import Weights
from tuner.study.study import SearchStudy
from tuner.study.trials import SECONDS, arguments_of


class RetrainingStage:
    """Trains each finalist with each further seed, as long as there is time for it; nothing stops them at a rung.

    Args:
        config: The search.
        study: Its trials and the finalists'.
        configs: Makes the retrainings' configurations.
        jobs: Of all stages.
        budget: The time that there is.
        weights: Tell who the finalists are.
        pool: What rungs are scored on; at its end a retraining is scored on the whole corpus then.
    """

    def __init__(
        self,
        config: SearchConfig,
        study: SearchStudy,
        *,
        configs: TrialConfigs,
        jobs: Jobs,
        budget: TimeBudget,
        weights: Weights,
        pool: CandidatePool,
    ) -> None:
        self._config, self._study, self._configs = config, study, configs
        self._jobs, self._budget, self._weights, self._pool = jobs, budget, weights, pool

    def next_job(self) -> Job | None:
        """Returns the next retraining that is not done yet."""
        if self._config.finalist_count == 0 or not self._budget.allows_retraining(self._jobs.rows):
            return None
        for source in self._weights.finalists():
            for offset in range(1, self._config.finalist_seeds + 1):
                seed = self._config.seed + offset
                name = retraining_name(source.number, seed)
                trial = None if name in self._jobs.running else self._study.retrainings.open(source.number, seed)
                if trial is not None:
                    params = arguments_of(source)
                    fields = {"rungs": self._config.rungs, **self._pool.to_use()}
                    config = self._configs.make(name, params, seed=seed, **fields)
                    row = self._jobs.row(name, "finalist", params)
                    return Job(config=config, row=row, stage=self, trial=trial)
        return None

    def close(self) -> bool:
        """Gives up the retrainings, of a broken search, of trials that are no finalists any more."""
        finalists = [trial.number for trial in self._weights.finalists()] if self._config.finalist_count else []
        if self._study.retrainings.give_up(finalists):
            self._weights.drop()
        return True

    def rung(self, job: Job, report: RungReport) -> bool:
        """Writes down what the retraining has taken so far."""
        if job.config.rungs:
            job.told.set_user_attr(SECONDS, dict(report.seconds))
        return True

    def ended(self, job: Job) -> None:
        """Tells the study what the retraining scored at its best rung; that on a pool is not told."""
        if job.config.rungs and self._pool.is_made:
            self._jobs.try_again(job, _on_whole_corpus(job.config))
        else:
            self._study.retrainings.complete(job.told, job.best)

    def gave_up(self, job: Job, failure: Failure) -> str:  # noqa: ARG002
        """Tells the study that there is no such retraining."""
        self._study.retrainings.failed(job.told)
        return ""


def _on_whole_corpus(config: TrialConfig) -> TrialConfig:
    """Returns what scores the weights of a retraining: of finalists no score on the pool counts."""
    checkpoint = f"{config.directory}/{CHECKPOINT}"
    return replace(config, rungs=(), guards=(), pool=None, pool_hash=None, checkpoint=checkpoint)
