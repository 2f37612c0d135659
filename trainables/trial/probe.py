"""``python -m trainables.trial.probe CONFIG``: a few steps of a trial, timed. Nothing of it is kept.

CONFIG is a `TrialConfig` as JSON. The last line printed is JSON: ``{"seconds_per_step", "steps", "peak_bytes"}``.
"""

import contextlib
import json
import resource
import sys
import time

from trainables.config import RungReport, TrialConfig

STEPS = 3
"""Timed steps, after a first one that is not."""


class _Enough(Exception):  # noqa: N818
    pass


def main(text: str) -> None:
    """Trains the first steps of the trial `text`, and prints what they took."""
    import torch

    from trainables.trial.trial import run_trial

    ends: list[float] = []
    total = 0

    def on_step(_step: int, steps: int) -> None:
        nonlocal total
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
        total = steps
        if len(ends) > STEPS:
            raise _Enough

    def on_rung(_: RungReport) -> bool:
        raise _Enough

    with contextlib.suppress(_Enough):
        run_trial(TrialConfig.from_dict(json.loads(text)), on_rung, progress=on_step)
    seconds = (ends[-1] - ends[0]) / max(1, len(ends) - 1)
    print(json.dumps({"seconds_per_step": seconds, "steps": total, "peak_bytes": _peak_bytes()}))


def _peak_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(sys.argv[1])
