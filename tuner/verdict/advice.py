"""What to do next where the verdict is to keep the base model."""

import shlex
from collections.abc import Iterator

from tuner.verdict.decision import KEEP, is_certain
from tuner.verdict.result import Verdict


def next_steps(result: Verdict, run_dir: str, *, planned: int) -> Iterator[str]:
    """Yields what may help, the likeliest first; nothing where fine-tuning is recommended.

    Args:
        result: The verdict.
        run_dir: The run directory, as seen from where the search was started.
        planned: How many trials were asked for.
    """
    best = result.best
    if result.verdict != KEEP or best is None:
        return
    if result.guard is not None and result.guard.lost:
        yield "forget less: lower learning rates, or --guard_constraint, with which the sampler avoids such settings"
    elif best.ci95[1] < 0:
        yield "try lower learning rates and fewer epochs (--search_space), and check the positives of your data"
        yield "the report lists the test queries that got worse"
    elif not is_certain(best):
        yield "give more test queries (--eval_data): smaller gains are told from chance with them"
        made = result.trials.complete + result.trials.pruned + result.trials.failed
        more = (
            f"--num_trials {2 * made}" if made >= planned else f"--time_budget LONGER ({made} of {planned} trials ran)"
        )
        yield f"look further: python -m tuner.search --resume {shlex.quote(run_dir)} {more}"
    elif result.recommended is not None and result.recommended.settings:
        yield "use the base model with the settings above: training adds nothing to them for certain"
