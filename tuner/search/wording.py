"""Jobs in words: what a row of the agenda is called, what it does, how it scored."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tuner.errors import counted
from tuner.request.checks import UPSTREAM_RULES
from tuner.run_dir.names import PREVIOUS_FOLDER
from tuner.schedule.jobs import FINALIST, Row
from tuner.schedule.time_left import TRIALS
from tuner.study.trials import BASE, USER

SHORT = {
    "learning_rate": "lr",
    "temperature": "T",
    "train_group_size": "group",
    "per_device_train_batch_size": "batch",
    "warmup_ratio": "warmup",
}
"""Arguments that are shown under a shorter name."""
_FAR_BELOW = 0.5
"""Share of the base model's score below which a trial has most likely broken the model: noise and a weak setting cost
a few hundredths."""


def title(row: Row) -> str:
    """Returns ``base model``, ``trial 1 (your settings)``, ``trial 4, seed 43``, ``trial 4, test``."""
    name, _, rest = row.name.partition("-")
    seed = rest.removeprefix("seed") if row.role == FINALIST else ""
    if row.name == PREVIOUS_FOLDER:
        return "the earlier search's model, test"
    model = "base model" if int(name) == 0 else f"trial {int(name)}"
    if row.role == USER:
        return f"{model} (your settings)"
    if seed:
        return f"{model}, seed {seed}"
    return model if row.role in TRIALS else f"{model}, {row.role}"


def short_title(row: Row) -> str:
    """The same for a column of the table: ``0 base``, ``1 yours``, ``4``, ``4 seed 43``, ``4 test``."""
    if row.name == PREVIOUS_FOLDER:
        return "earlier test"
    name, _, rest = row.name.partition("-")
    what = {BASE: "base", USER: "yours", FINALIST: rest.replace("seed", "seed ")}
    return f"{int(name)} {'' if row.role == 'sampled' else what.get(row.role, row.role)}".rstrip()


def state(row: Row) -> str:
    """Returns ``scoring``, ``training`` or ``loading`` for a row that runs, and how it ended for another."""
    if row.state != "running":
        return row.state
    return "scoring" if row.scoring is not None else "training" if row.steps else "loading"


def position(row: Row, rungs: int) -> str:
    """Returns ``1/4 63% trained``: the last rung of so many, and how much of the training, or of scoring, is done."""
    share = ""
    if row.state == "running" and row.scoring is not None:
        _, done, total = row.scoring
        share = f"{100 * done // total}% scored" if total else ""
    elif row.state == "running" and row.steps:
        share = f"{100 * row.step // row.steps}% trained"
    return f"{f'{row.rung}/{rungs}' if row.rung else ''} {share}".strip()


def doing(row: Row, rungs: int) -> str:
    """Returns what a row that runs is at: ``scoring, 1,024 of 60,000 passages embedded``."""
    reached = f"rung {row.rung} of {rungs}, dev {score(row.scores[-1])}" if row.rung and row.scores else ""
    if row.note:
        now = row.note
    elif row.scoring is not None:
        what, done, total = row.scoring
        now = f"scoring, {done:,}{f' of {total:,}' if total else ''} passages {what}"
    else:
        now = f"step {row.step:,} of {row.steps:,}" if row.steps else "loading the model and the data"
    return ", ".join(filter(None, (reached, now)))


def result(row: Row) -> str:
    """Returns what a row has scored: at each of its rungs, and the best of them where that is not the last."""
    if row.value is None:
        return ""
    if row.role not in (*TRIALS, FINALIST):
        return score(row.value)
    best = f", best {score(row.value)}" if row.scores and row.scores[-1] < row.value else ""
    return f"dev {' '.join(map(score, row.scores)) or score(row.value)}{best}"


def best_row(rows: Sequence[Row]) -> Row | None:
    """Returns the best trained trial: of those that came to their end, or of all while none has."""
    trained = [row for row in rows if row.role in TRIALS and row.role != BASE]
    scored = [row for row in trained if row.value is not None and row.state not in ("failed", "retried")]
    ended = [row for row in scored if row.state == "complete"]
    return max(ended or scored, key=lambda row: row.value or 0.0, default=None)


def best_so_far(rows: Sequence[Row]) -> str:
    """Returns ``best so far trial 4: 0.7246 (base model 0.6879, +0.0367)``; nothing where nothing is scored."""
    best = best_row(rows)
    base = base_value(rows)
    if best is None or best.value is None:
        return "" if base is None else f"base model {score(base)}"
    against = "" if base is None else f" (base model {score(base)}, {best.value - base:+.4f})"
    return f"best so far trial {int(best.name[:4])}: {score(best.value)}{against}"


def base_value(rows: Sequence[Row]) -> float | None:
    """Returns the base model's score on dev; None while there is none."""
    return next((row.value for row in rows if row.role == BASE and row.value is not None), None)


def begun(rows: Sequence[Row], planned: int) -> str:
    """Returns ``trial 5 of 6``, by the numbers that trials have: the base model is number 0 of `planned` trials."""
    last = len({row.name for row in rows if row.role in TRIALS}) - 1
    return f"trial {last} of {planned - 1}" if last > 0 else f"the base model, before {counted(planned - 1, 'trial')}"


def far_below(row: Row, base: float | None) -> str:
    """Returns the warning that a trial has scored far below the base model; nothing where it has not."""
    if base is None or row.role not in (*TRIALS, FINALIST) or not row.scores or row.scores[-1] >= _FAR_BELOW * base:
        return ""
    settings = f" with {shown(row.params)}" if row.params else ""
    usual = UPSTREAM_RULES["learning_rate"][2] if "learning_rate" in row.params else "look at its settings"
    return f"{title(row)} is far below the base model, {score(row.scores[-1])} against {score(base)}{settings}; {usual}"


def shown(params: Mapping[str, Any]) -> str:
    """Returns parameters in one short line: ``lr 2.1e-05  T 0.02  group 4  batch 8``."""
    return "  ".join(f"{SHORT.get(name, name)} {value(each)}" for name, each in params.items())


def value(of: Any) -> str:
    """Returns a parameter's value, short."""
    return "" if of is None else f"{of:.2g}" if isinstance(of, float) else str(of)


def score(of: float | None) -> str:
    """Returns a score with four digits; nothing for none."""
    return "" if of is None else f"{of:.4f}"


def age(row: Row) -> float:
    """Returns how long a row runs, or ran, in seconds."""
    return (time.monotonic() if row.ended is None else row.ended) - row.started


def clock(seconds: float) -> str:
    """Returns ``3:07`` or ``1:03:07``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
