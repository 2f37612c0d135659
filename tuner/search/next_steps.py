"""What is worth trying next, as the terminal says it."""

import shlex
from collections.abc import Iterator

from tuner.verdict.advice import Advice, Do, MoreData, MoreQueries, MoreTrials, Step, of_verdict
from tuner.verdict.result import Verdict


def next_steps(result: Verdict, run_dir: str, *, planned: int, by_patience: bool = False) -> Iterator[str]:
    """Yields lines for the gravest of the reasons to keep the base model; nothing where fine-tuning is recommended.

    Args:
        result: The verdict.
        run_dir: The run directory, as seen from where the search was started.
        planned: How many trials were asked for.
        by_patience: ``--patience`` ended the search before they were made.
    """
    advised = of_verdict(result, planned=planned, by_patience=by_patience)
    found = [(advice.because, advice) for advice in advised if advice.because]
    gravest = min((because for because, _ in found), default=None)
    for because, advice in found:
        if because == gravest:
            yield from _lines(advice, run_dir)


def _lines(advice: Advice, run_dir: str) -> Iterator[str]:
    match advice:
        case Do(step=Step.FORGET_LESS):
            yield (
                "forget less: lower learning rates, or --guard_constraint, with which the sampler avoids such settings"
            )
        case Do(step=Step.TRAIN_MORE_GENTLY):
            yield "try lower learning rates and fewer epochs (--search_space), and check the positives of your data"
            yield "the report lists the test queries that got worse"
        case MoreQueries():
            yield "give more test queries (--eval_data): smaller gains are told from chance with them"
        case MoreData():
            yield (
                f"{advice.queries} test queries are too few for any verdict: search anew, in another --run_dir, with "
                "more rows (a fifth of the queries become test, at most 500) or a larger --eval_data"
            )
        case MoreTrials():
            yield f"look further: python -m tuner.search --resume {shlex.quote(run_dir)} {_more_trials(advice)}"
            yield "test is looked at once more then: a verdict that only just changes is to be taken with care"
        case Do(step=Step.USE_SETTINGS):
            yield "use the base model with the settings above: training adds nothing to them for certain"


def _more_trials(advice: MoreTrials) -> str:
    """The flag that lifts what ended the search; a patience of all trials ends none."""
    made, planned = advice.made, advice.planned
    if made >= planned:
        return f"--num_trials {2 * made}"
    if advice.by_patience:
        return f"--patience {planned} ({made} of {planned} trials ran, then --patience ended the search)"
    return f"--time_budget LONGER ({made} of {planned} trials ran)"
