"""``python -m trainables.trial.probe CONFIG FEW``: a few steps of a trial, and some passages scored, timed.

CONFIG is a `TrialConfig` as JSON, FEW a BEIR folder. The last line printed is JSON: ``{"seconds_per_step", "steps",
"peak_bytes", "seconds_per_passage"}``.
"""

import contextlib
import gc
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

from trainables.config import RungReport, TrialConfig
from trainables.names import LOG

STEPS = 3
"""Timed steps, after a first one that is not."""


class _Enough(Exception):  # noqa: N818
    pass


def main(text: str, few: str) -> None:
    """Trains the first steps of the trial `text`, scores the base model on `few`, and prints what they took."""
    import torch

    from trainables.trial.trial import run_trial

    config = TrialConfig.from_dict(json.loads(text))
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
        run_trial(config, on_rung, progress=on_step)
    peak = _peak_bytes()
    gc.collect()  # the trainer and its callbacks hold each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    found = {
        "seconds_per_step": (ends[-1] - ends[0]) / max(1, len(ends) - 1),
        "steps": total,
        "peak_bytes": peak,
        "seconds_per_passage": _seconds_per_passage(config, Path(few)),
    }
    print(json.dumps(found))


def _seconds_per_passage(config: TrialConfig, few: Path) -> float:
    """Scores the base model as at a rung, twice: the first time, what it runs on is warmed up.

    A frozen encoder would embed once for both.
    """
    from trainables.m3.base_models import BaseModels
    from trainables.process import trial_process
    from trainables.trial.judging import Judge, load

    base, seconds = BaseModels(), 0.0
    config = replace(config, eval_data=str(few), arguments={**config.arguments, "fix_encoder": False})
    with trial_process(Path(config.directory) / LOG):
        arguments, tokenizer, model = load(config, None, base)
        judge = Judge(config, arguments, tokenizer, base)
        for _ in range(2):
            began = time.perf_counter()
            judge.rung_scores(model)
            seconds = time.perf_counter() - began
    return seconds / (few / "corpus.jsonl").read_bytes().count(b"\n")


def _peak_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
