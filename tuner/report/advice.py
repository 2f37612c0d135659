"""What is worth trying next, as the report says it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuner.report.standings import FAILED, Standing, of_role
from tuner.study.trials import BASE
from tuner.verdict.advice import (
    Advice,
    Do,
    LookIntoFailures,
    LowerRates,
    MoreData,
    MoreQueries,
    Searched,
    Step,
    TrainShorter,
    Tried,
    Widen,
    of_search,
)
from tuner.verdict.decision import range_notes, sentence
from tuner.verdict.result import Verdict

_FIXED: Mapping[Step, str] = {
    Step.FORGET_LESS: "What was gained is lost elsewhere: search lower learning rates or fewer epochs, mix rows of the "
    "guarded tasks into the training data, or search with --guard_constraint True.",
    Step.TRAIN_LONGER: "The best trial was still rising at its last rung: train longer (--num_train_epochs).",
    Step.READ_LOST_QUERIES: "Open the queries that got worse, above: where the passages that came up are right in "
    "truth, the data has false negatives or misses positives; where they are not, rows like these are missing from it.",
    Step.MINE_NEGATIVES: "Rows have few negatives: mine hard ones, with a teacher's scores if you can.",
    Step.SCORE_WITH_TEACHER: "The rows have no teacher's scores. Scores of a reranker (pos_scores, neg_scores, "
    "--knowledge_distillation True) soften false negatives.",
    Step.MEND_DATA: "Mend what the data check found, at the end of this page.",
    Step.TRY_MORE_SETTINGS: "Few settings were tried: go on with --resume and a higher --num_trials.",
}
"""What is said whatever was measured."""


def advice(
    result: Verdict, trials: Sequence[Standing], rungs: Sequence[float], manifest: Mapping[str, Any] | None
) -> list[str]:
    """Returns sentences, what promises most first.

    Args:
        result: The verdict.
        trials: The search.
        rungs: Shares of the training examples at which trials were scored.
        manifest: What RUN/data/manifest.json holds; None where it is not there.
    """
    base = of_role(trials, BASE)
    searched = Searched(
        base=base.value if base else None,
        trained=[_tried(trial) for trial in trials if trial.role != BASE and trial.rungs],
        settings=sum(trial.role != BASE for trial in trials),
        failed=[trial.number for trial in trials if trial.state == FAILED],
        rungs=rungs,
        manifest=manifest,
    )
    return [said for each in of_search(result, searched) for said in _sentences(each)]


def _tried(trial: Standing) -> Tried:
    rate = trial.params.get("learning_rate")
    return Tried(number=trial.number, value=trial.value, rungs=trial.rungs, learning_rate=rate)


def _sentences(advice: Advice) -> Iterator[str]:
    """Yields nothing of what the page says elsewhere."""
    match advice:
        case LowerRates():
            yield _lower_rates(advice)
        case MoreQueries(needed=float(needed)):
            wanted = "many times as many" if advice.is_out_of_reach else f"about {round(needed, -2):,.0f}"
            yield (
                f"A gain of the size that was measured, {advice.gain:+.4f}, is detected in 8 of 10 cases with {wanted} "
                f"test queries; there are {advice.queries}. Give more of them with --eval_data."
            )
        case MoreData(queries=queries):
            yield (
                f"{queries} test queries are too few for any verdict: search anew, in another run directory, with more "
                "rows (a fifth of the queries become test, at most 500) or a larger --eval_data."
            )
        case Widen(ends=ends):
            yield from map(sentence, range_notes(ends))
        case TrainShorter(share=share):
            yield (
                f"The best trial was best at its first rung, after {share:.0%} of its training, and fell after that: "
                "train for less (--num_train_epochs), at lower learning rates."
            )
        case LookIntoFailures(trials=trials):
            names = ", ".join(map(str, trials))
            yield f"Trial {names} failed; the table of trials says why, and its log the whole of it."
        case Do(step=step) if step in _FIXED:
            yield _FIXED[step]


def _lower_rates(advice: LowerRates) -> str:
    tried = f" Tried were {min(advice.rates):.2g} to {max(advice.rates):.2g}." if advice.rates else ""
    if advice.worse == advice.trained:
        return (
            "Every trained trial scores below the base model on dev: training did harm. Search learning rates ten "
            f"times lower, and read the queries that got worse.{tried}"
        )
    return (
        f"{advice.worse} of {advice.trained} trained trials score below the base model on dev: search lower learning "
        f"rates.{tried}"
    )
