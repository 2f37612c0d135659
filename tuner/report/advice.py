"""What to try next, by what a search found: told where the base model is kept, and where the best lies at an edge."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuner.report.standings import FAILED, Standing, of_role
from tuner.study.trials import BASE
from tuner.verdict.decision import FINE_TUNE, range_notes, sentence
from tuner.verdict.result import Verdict

_FEW_NEGATIVES = 2
_FEW_TRIALS = 8


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
    trained = [trial for trial in trials if trial.role != BASE and trial.rungs]
    widened = [sentence(note) for note in range_notes(result.range_ends)]
    if result.verdict == FINE_TUNE:
        return widened
    higher = any((end.name, end.end) == ("learning_rate", "largest") for end in result.range_ends)
    return [
        *_of_harm(trials, trained, higher=higher),
        *_of_chance(result),
        *_of_guards(result),
        *widened,
        *_of_length(result, trained, rungs),
        *_of_data(result, manifest),
        *_of_number(trials),
        *_of_failures(trials),
    ]


def _of_harm(trials: Sequence[Standing], trained: Sequence[Standing], *, higher: bool) -> Iterator[str]:
    """`higher`: the best learning rate lies at the upper end, so that lower ones are not what is missing."""
    base = of_role(trials, BASE)
    if base is None or base.value is None or not trained:
        return
    worse = [trial for trial in trained if trial.value is not None and trial.value < base.value]
    rates = [trial.params["learning_rate"] for trial in trained if "learning_rate" in trial.params]
    tried = f" Tried were {min(rates):.2g} to {max(rates):.2g}." if rates else ""
    if len(worse) == len(trained):
        yield (
            f"Every trained trial scores below the base model on dev: training did harm. Search learning rates ten "
            f"times lower, and read the queries that got worse.{tried}"
        )
    elif 2 * len(worse) > len(trained) and not higher:
        yield (
            f"{len(worse)} of {len(trained)} trained trials score below the base model on dev: search lower learning "
            f"rates.{tried}"
        )


def _of_chance(result: Verdict) -> Iterator[str]:
    best = result.best
    if best is None or best.gain <= 0 or best.detectable <= best.gain:
        return
    needed = best.queries * (best.detectable / best.gain) ** 2
    wanted = f"about {round(needed, -2):,.0f}" if needed < 20 * best.queries else "many times as many"
    yield (
        f"A gain of the size that was measured, {best.gain:+.4f}, is detected in 8 of 10 cases with {wanted} test "
        f"queries; there are {best.queries}. Give more of them with --eval_data."
    )


def _of_guards(result: Verdict) -> Iterator[str]:
    if result.guard and result.guard.lost:
        yield (
            "What was gained is lost elsewhere: search lower learning rates or fewer epochs, mix rows of the guarded "
            "tasks into the training data, or search with --guard_constraint True."
        )


def _of_length(result: Verdict, trained: Sequence[Standing], rungs: Sequence[float]) -> Iterator[str]:
    best = next((trial for trial in trained if result.best and trial.number == result.best.trial), None)
    if best is None or len(best.rungs) < 2 or len(rungs) < 2:
        return
    top = max(best.rungs, key=lambda rung: best.rungs[rung])
    if top == len(rungs):
        yield "The best trial was still rising at its last rung: train longer (--num_train_epochs)."
    elif top == 1:
        yield (
            f"The best trial was best at its first rung, after {rungs[0]:.0%} of its training, and fell after that: "
            "train for less (--num_train_epochs), at lower learning rates."
        )


def _of_data(result: Verdict, manifest: Mapping[str, Any] | None) -> Iterator[str]:
    if result.queries.lost:
        yield (
            "Open the queries that got worse, above: where the passages that came up are right in truth, the data has "
            "false negatives or misses positives; where they are not, rows like these are missing from it."
        )
    if manifest is None:
        return
    if manifest["negatives_per_row"]["median"] < _FEW_NEGATIVES:
        yield "Rows have few negatives: mine hard ones, with a teacher's scores if you can."
    elif not manifest["has_scores"]:
        yield (
            "The rows have no teacher's scores. Scores of a reranker (pos_scores, neg_scores, --knowledge_distillation "
            "True) soften false negatives."
        )
    if manifest["warnings"]:
        yield "Mend what the data check found, at the end of this page."


def _of_number(trials: Sequence[Standing]) -> Iterator[str]:
    if 0 < sum(trial.role != BASE for trial in trials) < _FEW_TRIALS:
        yield "Few settings were tried: go on with --resume and a higher --num_trials."


def _of_failures(trials: Sequence[Standing]) -> Iterator[str]:
    failed = [trial for trial in trials if trial.state == FAILED]
    if failed:
        names = ", ".join(str(trial.number) for trial in failed)
        yield f"Trial {names} failed; the table of trials says why, and its log the whole of it."
