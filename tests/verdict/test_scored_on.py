"""Which scores are on a pool of passages and which on the corpus, as it is said and read again."""

import dataclasses

from tuner.verdict.decision import scored_on
from tuner.verdict.result import CandidatePool, Counts, Verdict

WHOLE = Verdict(
    metric="dense.ndcg_at_10", verdict="fine-tune", reason="", base=None, user=None, best=None,
    trials=Counts(complete=1, pruned=0, failed=0), seconds={"total": 1.0},
)  # fmt: skip


def test_a_search_on_the_whole_corpus_has_nothing_to_say() -> None:
    assert scored_on(WHOLE) == ""


def test_models_on_the_whole_corpus_are_named() -> None:
    pool = CandidatePool(passages=20_000, corpus=160_000, whole_corpus=[0, 1, 7])
    pooled = dataclasses.replace(WHOLE, candidate_pool=pool)
    assert Verdict.from_dict(pooled.to_dict()) == pooled
    assert scored_on(pooled) == (
        "at rungs on 20,000 of 160,000 passages; on dev's whole corpus the base model, trial 1, trial 7; "
        "on test's whole corpus whatever was scored there"
    )
