"""The verdict: what is said of a gain, and why."""

from collections.abc import Mapping, Sequence

from tuner.verdict.encoding import shown_settings
from tuner.verdict.result import EncodedBase, Guard, RangeEnd, Verdict
from tuner.verdict.statistics import Comparison

FINE_TUNE, KEEP = "fine-tune", "keep the base model"
SIGNIFICANT = 0.05
"""p-value up to which a gain is not put down to chance."""


def decide(
    gain: Comparison,
    guard: Guard | None = None,
    parts: Mapping[str, Comparison] | None = None,
    rivals: Mapping[str, Comparison] | None = None,
) -> tuple[str, str]:
    """Returns the verdict and its reason in a sentence or two.

    "fine-tune" is said only when the whole 95% interval of the gain on test lies above 0, the permutation test agrees,
    and no guard task loses more than its tolerance. The bootstrap alone is too sure where few queries moved: of four
    that all gained, hardly a resample has none. Of several objectives none may be worse for certain. And what training
    gave is worth nothing where the base model with other settings is as good.

    Args:
        gain: Of the objective, over the base model encoded alike; of several, of their mean.
        guard: What was forgotten elsewhere.
        parts: Several objectives, each by its name.
        rivals: The best trial against the base model with other settings, which are told after "the base model".
    """
    measured = f"{gain.gain:+.4f} on {gain.queries} test queries ({interval(gain)})"
    if parts:
        measured = f"{measured} in the mean of {len(parts)} objectives: {'; '.join(map(_part, parts.items()))}"
    if guard is not None and guard.lost:
        return KEEP, f"{_losses(guard)} The gain is {measured}."
    if worse := [name for name, part in (parts or {}).items() if part.ci95[1] < 0]:
        return KEEP, f"The best trial is worse than the base model in {' and '.join(worse)}. The gain is {measured}."
    if not is_certain(gain):
        return KEEP, _doubt(gain, measured)
    for name, rival in (rivals or {}).items():
        if not is_certain(rival):
            return KEEP, (
                f"The gain of training is {measured}, but over the base model {name} it is {rival.gain:+.4f} "
                f"({interval(rival)}), which is none for certain."
            )
    return FINE_TUNE, f"The gain is {measured}."


def is_certain(gain: Comparison) -> bool:
    """Whether a gain is not put down to chance: the whole interval lies above 0, and the permutation test agrees."""
    return gain.ci95[0] > 0 and gain.p_value <= SIGNIFICANT


def _doubt(gain: Comparison, measured: str) -> str:
    """Why a gain that is not certain is none."""
    low, high = gain.ci95
    if low > 0:
        return f"Too few queries changed to tell the gain from chance: {_changed(gain)}. The gain is {measured}."
    if high < 0:
        return f"The best trial is worse than the base model: {measured}."
    if gain.win_tie_loss.tie == gain.queries:
        return f"The best trial and the base model score the same on each of the {gain.queries} test queries."
    return (
        f"The {'loss' if gain.gain < 0 else 'gain'} cannot be told from chance: {measured}. "
        f"A test set of this size detects gains of about {gain.detectable:.4f} and more."
    )


def settings_notes(result: Verdict) -> list[str]:
    """Returns what the settings alone gave, and what follows: a line each; none where trials encode as the user does.

    A space may vary how a text is encoded, and that is no training.
    """
    base, recommended = result.base, result.recommended
    if base is None or recommended is None:
        return []
    notes = []
    if (alike := base.encoded_as_best) is not None:
        notes.append(f"the base model with the winner's settings: {_encoded(alike)}")
    if (other := base.at_its_best) is not None and (alike is None or other.folder != alike.folder):
        notes.append(f"the base model with the settings it is best used with: {_encoded(other)}")
    if recommended.settings:
        notes.append(f"use these settings: {shown_settings(recommended.settings)}")
    return notes


def range_notes(ends: Sequence[RangeEnd]) -> list[str]:
    """Returns a line for each parameter whose best value lies at an end of its range."""
    return [
        f"the best {end.name}{'' if end.value == end.limit else f', {end.value:.4g},'} is "
        f"{'' if end.value == end.limit else 'next to '}the {end.end} allowed ({end.limit:g}): widen it"
        for end in ends
    ]


def scored_on(result: Verdict) -> str:
    """Returns which scores are on a pool of passages and which on the corpus; nothing where all are on the corpus."""
    pool = result.candidate_pool
    if pool is None:
        return ""
    models = ", ".join(["the base model", *(f"trial {number}" for number in pool.whole_corpus if number)])
    return (
        f"at rungs on {pool.passages:,} of {pool.corpus:,} passages; on dev's whole corpus {models}; "
        "on test's whole corpus whatever was scored there"
    )


def sentence(note: str) -> str:
    """Returns a note as a sentence of its own."""
    return f"{note[0].upper()}{note[1:]}."


def _encoded(base: EncodedBase) -> str:
    test = "" if base.test is None else f"{base.test:.4f} on test, "
    over = f"{base.gain:+.4f} over its own ({interval(base)}, p = {base.p_value:.4f})"
    return f"{test}{over}; {shown_settings(base.params)}"


def modes(weights: Mapping[str, float]) -> str:
    """Returns weights of the hybrid score as FlagEmbedding's ``compute_score`` takes them."""
    return f"weights_for_different_modes=[{', '.join(f'{weights[head]:g}' for head in ('dense', 'sparse', 'colbert'))}]"


def interval(gain: Comparison) -> str:
    """Returns ``95% interval +0.0100 to +0.0200``."""
    low, high = gain.ci95
    return f"95% interval {low:+.4f} to {high:+.4f}"


def _changed(gain: Comparison) -> str:
    counts = gain.win_tie_loss
    return f"{counts.win} better and {counts.loss} worse of {gain.queries}, p = {gain.p_value:.4f}"


def _part(named: tuple[str, Comparison]) -> str:
    name, gain = named
    return f"{name} {gain.gain:+.4f} ({interval(gain)})"


def _losses(guard: Guard) -> str:
    """A sentence on what was lost, and another on what could not be scored, where there is any."""
    tasks = {task: guard.tasks[task] for task in guard.lost}
    lost = [
        f"{task} ({max(scores.base, scores.base_as_is or 0.0):.4f} to {scores.best:.4f})"
        for task, scores in tasks.items()
        if scores.base is not None and scores.best is not None
    ]
    unscored = [task for task, scores in tasks.items() if scores.base is None or scores.best is None]
    sentences = [f"Guard tasks lose more than {guard.tolerance:g}: {', '.join(lost)}."] if lost else []
    if unscored:
        sentences.append(f"Guard tasks could not be scored, and may have lost anything: {', '.join(unscored)}.")
    return " ".join(sentences)
