"""A search whose corpus is larger than its pool: who is scored on what, and what is compared with what."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fake import METRIC, fake_rungs, new_agenda, open_agenda, open_study
from trainables.config import Progress, Report, RungReport, TrialConfig
from tuner.cluster.executor import run_in_process
from tuner.errors import AnotherSearchError, RequestError
from tuner.request.config import SearchConfig
from tuner.schedule.agenda import Agenda
from tuner.schedule.pool import require_pool
from tuner.schedule.time_budget import final_scorings
from tuner.study.claim import claim
from tuner.study.study import read_studies
from tuner.study.trials import dev_scores, value_of
from tuner.verdict import selection

POOL = '{"corpus": 21, "passages": ["p0"]}'
ASKED = SearchConfig(num_trials=6, finalists=2, finalist_seeds=1, pruner="none", candidate_pool_size=20)


def _corpus(run_dir: Path, passages: int) -> None:
    (run_dir / "eval").mkdir(parents=True)
    (run_dir / "eval" / "corpus.jsonl").write_text('{"_id": "p"}\n' * passages)


class Worker:
    """Scores on the pool are 0.1 too high, but for the base model; on the corpus, trial `best` is best."""

    def __init__(self, best: int | None = None) -> None:
        self.jobs: list[TrialConfig] = []
        self.best = best

    def __call__(self, config: TrialConfig, report: Report, _: Progress) -> None:
        self.jobs.append(config)
        if config.rungs:
            (Path(config.directory) / "checkpoint").mkdir(parents=True, exist_ok=True)
        assert all(report(rung) for rung in self._rungs(config))

    def _rungs(self, config: TrialConfig) -> Iterator[RungReport]:
        for rung in fake_rungs(config):
            if config.pool_size is not None:
                assert config.pool is not None
                Path(config.pool).write_text(POOL)
                digest = hashlib.sha256(POOL.encode()).hexdigest()
                yield replace(rung, pool={"hash": digest, "passages": 1, "corpus": 21, "value": rung.value})
            elif config.rungs and config.pool_hash is not None:
                yield replace(rung, value=rung.value + 0.1)
            elif config.checkpoint is not None and config.split == "dev":
                value = 0.9 if self.best is not None and config.name.startswith(f"{self.best:04d}") else 0.5
                yield replace(rung, value=value, scores={METRIC: value})
            else:
                yield rung


def _searched(run_dir: Path, config: SearchConfig = ASKED, worker: Worker | None = None) -> tuple[Agenda, Worker]:
    agenda, worker = open_agenda(config, run_dir), worker or Worker()
    run_in_process(agenda, worker)
    return agenda, worker


def test_rungs_have_the_pool_and_everything_that_is_told_apart_at_the_end_has_the_corpus(tmp_path: Path) -> None:
    _corpus(tmp_path, 21)
    agenda, worker = _searched(tmp_path)
    path, digest = str(tmp_path / "trials" / "0000" / "pool.json"), hashlib.sha256(POOL.encode()).hexdigest()
    base, *others = worker.jobs
    assert (base.pool, base.pool_size, base.pool_hash) == (path, 20, None)
    for job in others:
        assert (job.pool, job.pool_hash) == ((path, digest) if job.rungs else (None, None)), job
    on_corpus = {job.name for job in worker.jobs if job.split == "dev" and job.checkpoint is not None}
    finalists = selection.finalists(agenda._study.search, 2)
    retrained = {f"{number:04d}-seed43" for number in finalists}
    assert on_corpus == {f"{number:04d}" for number in [*finalists, 1]} | retrained


def test_values_of_the_study_are_on_the_pool_and_finalists_are_told_apart_on_the_corpus(tmp_path: Path) -> None:
    _corpus(tmp_path, 21)
    agenda, _ = _searched(tmp_path)
    second = selection.finalists(agenda._study.search, 2)[1]
    (tmp_path / "again").mkdir()
    _corpus(tmp_path / "again", 21)
    _searched(tmp_path / "again", worker=Worker(best=second))
    study, retrains = read_studies(tmp_path / "again")
    trials = study.get_trials(deepcopy=False)
    assert value_of(trials[0]) == 0.6
    assert value_of(trials[second]) > 0.6
    assert dev_scores(study, trials[second]) == {METRIC: 0.9}
    assert selection.finalists(study, 2)[1] == second  # by the pool
    assert selection.winner(study, retrains) == second
    ranked = selection.standings(study, retrains)
    assert ranked[0].seeds == {42: 0.9, 43: 0.9}
    assert [standing.whole_corpus for standing in ranked].count(True) == len({*selection.finalists(study, 2), 1})
    assert not any(standing.whole_corpus for standing in ranked[-2:])


@pytest.mark.parametrize(("passages", "size"), [(20, 20), (21, 0)])
def test_without_a_larger_corpus_or_with_size_0_nothing_is_asked(passages: int, size: int, tmp_path: Path) -> None:
    _corpus(tmp_path, passages)
    agenda, worker = _searched(tmp_path, ASKED.replace(candidate_pool_size=size))
    assert all(job.pool is None and job.pool_size is None for job in worker.jobs)
    assert not any(job.split == "dev" and job.checkpoint for job in worker.jobs)
    assert all(standing.whole_corpus for standing in selection.standings(agenda._study.search))


def test_trials_wait_for_the_pool(tmp_path: Path) -> None:
    _corpus(tmp_path, 21)
    agenda = open_agenda(ASKED.replace(concurrent_trials=2), tmp_path)
    base = agenda.next()
    assert base is not None
    assert agenda.next() is None
    assert all(agenda.rung(base.name, report) for report in Worker()._rungs(base))
    agenda.ended(base.name)
    first, second = agenda.next(), agenda.next()
    assert first is not None
    assert second is not None
    assert first.pool_hash == second.pool_hash != None  # noqa: E711


def test_a_search_that_is_broken_between_a_retraining_and_its_score_goes_on(tmp_path: Path) -> None:
    _corpus(tmp_path, 21)

    class Broken(Worker):
        def __call__(self, config: TrialConfig, report: Report, progress: Progress) -> None:
            if "seed" in config.name and not config.rungs:
                raise KeyboardInterrupt
            super().__call__(config, report, progress)

    with pytest.raises(KeyboardInterrupt):
        _searched(tmp_path, worker=Broken())
    assert list((tmp_path / "trials").glob("*-seed43/checkpoint"))
    agenda, worker = _searched(tmp_path)
    assert agenda.finished
    assert {job.name for job in worker.jobs if job.rungs} <= {job.name for job in worker.jobs if "seed" in job.name}
    _, retrains = read_studies(tmp_path)
    assert [trial.value for trial in retrains.get_trials(deepcopy=False)] == [0.5, 0.5]
    assert not list((tmp_path / "trials").glob("*-seed43/checkpoint"))


def test_a_search_that_was_begun_without_a_pool_goes_on_without(tmp_path: Path) -> None:
    """Its base model is unfinished, its second trial is not."""
    study = open_study(ASKED, tmp_path)
    base, (user, _) = study.ask(), study.ask()
    (report,) = fake_rungs(TrialConfig(name="", directory=str(tmp_path), arguments={}, eval_data="", metric=METRIC))
    study.tell.report(user, replace(report, rung=1))
    _corpus(tmp_path, 21)
    agenda, worker = _searched(tmp_path)
    assert agenda.finished
    assert base is not None
    assert all(job.pool is None for job in worker.jobs)


def test_another_pool_or_none_is_told(tmp_path: Path) -> None:
    _corpus(tmp_path, 21)
    _searched(tmp_path)
    study, path = open_study(ASKED, tmp_path), tmp_path / "trials" / "0000" / "pool.json"
    require_pool(study, tmp_path)
    path.write_text(POOL.replace("p0", "p1"))
    with pytest.raises(RequestError, match="but it is another one; put it back"):
        require_pool(study, tmp_path)
    path.unlink()
    with pytest.raises(RequestError, match="but it is not there; put it back"):
        require_pool(study, tmp_path)


def test_another_size_is_told(tmp_path: Path) -> None:
    study = open_study(ASKED, tmp_path)
    claim(study.search, {"candidate_pool_size": 20})
    with pytest.raises(AnotherSearchError, match="candidate_pool_size was 20 when the search began and is 0 now"):
        claim(study.search, {"candidate_pool_size": 0})


def test_the_end_keeps_time_for_scores_on_the_corpus() -> None:
    """Two finalists, the user's own settings and two retrainings."""
    assert final_scorings(ASKED, pooled=True) == final_scorings(ASKED) + 2 + 1 + 2


def test_the_record_of_a_trial_says_what_it_was_scored_on(tmp_path: Path) -> None:
    _corpus(tmp_path, 21)
    study = open_study(ASKED, tmp_path)
    run_in_process(new_agenda(ASKED, study, tmp_path), Worker())
    record = json.loads((tmp_path / "trials" / "0001" / "config.json").read_text())
    assert record["pool_hash"] == study.pool["hash"]
