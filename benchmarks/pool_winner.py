"""How often the winner on a pool of passages is the winner on the whole corpus, with a model that retrieves.

MiniLM is trained with a number of the recorded configurations, each for a part of a full run, and scored on the whole
corpus. The same rankings are then read on pools as a search makes them: the judged passages of dev and the base model's
best of each dev query, without a random fill. A search takes the best 100; the corpora here are small, so that fewer
are taken, which is a smaller part of each ranking and so the harder test.

The last line is one JSON object; for each depth of the pool, the share of the corpus that it holds and, at each
fraction of a full run: Kendall's tau between the scores on pool and corpus, whether both have the same best
configuration, and what the pool's best loses on the corpus.

    python benchmarks/pool_winner.py --data .carry/record --task nq_qed

.carry/record is what ``benchmarks/record_table.py --prepare`` writes.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scipy.stats import kendalltau

from benchmarks import record_data
from benchmarks.record_data import SEED, TASKS, Job
from benchmarks.record_run import Recorder
from benchmarks.recorded_table import FRACTIONS, Floats
from trainables.m3.runner import Model
from trainables.scoring.measures import measure
from trainables.scoring.pool import draw_pool

SPLIT = "dev"


class OnPools(Recorder):
    """Scores each model on the corpus, and on the pools that the first one, the base model, gives.

    Args:
        depths: of each pool; the base model's best so many passages of each query are in it.
        recorder: arguments of a `Recorder`.
    """

    def __init__(self, depths: Sequence[int], **recorder: Any) -> None:
        super().__init__(**recorder)
        self._depths = depths
        self.kept: list[set[str]] = []
        """Ids of the corpus, then of each pool."""

    def _score(self, task: str, model: Model) -> Floats:
        """Returns nDCG@10, of shape (1 + pools, queries)."""
        scorer = self._scorer(task, model)
        with mock.patch("trainables.scoring.scorer.DEPTH", len(scorer.ids)):  # what a pool leaves of 100 is too few
            rankings, qrels = scorer.rankings(model, SPLIT, heads=["dense"])["dense"], scorer.qrels(SPLIT)
        if not self.kept:
            judged = {passage for relevant in qrels.values() for passage in relevant}
            self.kept = [set(scorer.ids), *self._pools(scorer.ids, judged, rankings)]
        return np.array([[_ndcg(rankings[query], qrels[query], kept) for query in rankings] for kept in self.kept])

    def _pools(self, ids: Sequence[str], judged: set[str], rankings: Mapping[str, Sequence[str]]) -> Iterator[set[str]]:
        for depth in self._depths:
            best = {query: ranking[:depth] for query, ranking in rankings.items()}
            pool = draw_pool(ids, judged, [best], size=0, seed=SEED)
            assert pool is not None, f"the best {depth} of each query are the whole corpus"
            yield set(pool.passages)


def _ndcg(ranking: Sequence[str], relevant: Mapping[str, int], kept: set[str]) -> float:
    return measure([passage for passage in ranking if passage in kept], relevant)["ndcg_at_10"]


def main() -> None:
    """Trains, scores and prints how far pools and corpus agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--configurations", type=int, default=24)
    parser.add_argument("--budget", type=float, choices=FRACTIONS[1:], default=0.25, help="of a full run, for each")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 3, 5, 10])
    asked = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(asked, Path(folder))))


def run(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns the JSON object."""
    record_data.unpack(asked.data, folder)
    recorder = OnPools(
        asked.depths,
        folder=folder,
        log=folder / "log.txt",
        configurations=record_data.read_configurations(asked.data),
        rows={asked.task: record_data.count_lines(folder / asked.task / "train.jsonl")},
    )
    base = recorder.rows(Job(task=asked.task, config=-1, seed=SEED))[0]
    found = []
    for config in range(asked.configurations):
        rows = recorder.rows(Job(task=asked.task, config=config, seed=SEED, budget=asked.budget))
        print(config, [round(float(row[0].mean()), 4) for row in rows], flush=True)
        found.append([row.mean(axis=1) for row in rows])
    whole = max(map(len, found))
    means = np.array([each for each in found if len(each) == whole])  # a training that diverged has fewer
    return {
        "task": asked.task,
        "passages": len(recorder.kept[0]),
        "queries": base.shape[1],
        "configurations": len(means),
        "base": round(float(base[0].mean()), 4),
        "fractions": FRACTIONS[:whole],
        "depths": {
            depth: {"share": round(len(kept) / len(recorder.kept[0]), 3)} | agreement(means[:, :, 0], means[:, :, at])
            for at, (depth, kept) in enumerate(zip(asked.depths, recorder.kept[1:], strict=True), start=1)
        },
    }


def agreement(corpus: Floats, pool: Floats) -> dict[str, list[Any]]:
    """Returns how far two tables of scores, of shape (configurations, fractions), agree at each fraction."""
    pairs = list(zip(corpus.T, pool.T, strict=True))
    return {
        "kendall_tau": [round(float(kendalltau(one, other).statistic), 3) for one, other in pairs],
        "same_best": [bool(one[other.argmax()] == one.max()) for one, other in pairs],
        "lost": [round(float(one.max() - one[other.argmax()]), 4) for one, other in pairs],
    }


if __name__ == "__main__":
    main()
