"""The first steps of the user's own settings and some passages, timed before a search: what the plan multiplies."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainables.config import TrialConfig
from trainables.scoring.heldout import read_passages, read_qrels, read_queries
from tuner.data import beir
from tuner.planning.plan import Plan
from tuner.request.arguments import honoured, translated
from tuner.request.config import SearchConfig
from tuner.run_dir.names import trial_path

_PROBE_SECONDS = 900
_SCORED, _SCORED_ON_GPU = 64, 2048
"""Passages that are embedded to be timed: some seconds of a CPU, or of a GPU that is to be at work."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The first steps of the user's own settings, as they ran here."""

    seconds_per_step: float
    steps: int
    """Of a whole trial."""
    peak_bytes: int
    """On the device."""
    seconds_per_passage: float
    """Of scoring: one passage embedded and compared."""


def run_probe(plan: Plan) -> Probe:
    """Trains the first steps of the user's settings, and embeds some passages, in a process of its own.

    Raises:
        RuntimeError: They failed, with the last line of why.
        TimeoutError: They took too long.
    """
    gpu = trains_on_gpu(plan.config)
    arguments, _ = honoured(plan.arguments, gpu=gpu)
    with tempfile.TemporaryDirectory() as folder:
        job = TrialConfig(
            name="probe",
            directory=str(trial_path(Path(folder), "probe")),
            arguments=translated({**arguments, "seed": plan.config.seed}),
            eval_data=str(plan.dataset.eval_data),
            metric=plan.config.metric,
            rungs=(1.0,),
        )
        few = write_few(Path(job.eval_data), Path(folder) / "few", _SCORED_ON_GPU if gpu else _SCORED)
        command = [sys.executable, "-m", "trainables.trial.probe", json.dumps(job.to_dict()), str(few)]
        done = _run_in_a_group(command, os.environ | {"CUDA_VISIBLE_DEVICES": _first_card()})
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    return Probe(**json.loads(done.stdout.splitlines()[-1]))


def _run_in_a_group(command: list[str], env: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Runs a command with whatever it starts, which ends with it: DeepSpeed's compilers outlive a process alone."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env, start_new_session=True) as process:
        try:
            output, errors = process.communicate(timeout=_PROBE_SECONDS)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise TimeoutError(
                f"the first 4 steps of your settings, and scoring some passages, took more than {_PROBE_SECONDS} s"
            ) from None
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _first_card() -> str:
    """A trial's worker sees one card; with several, transformers would train on all of them by threads."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def write_few(eval_data: Path, folder: Path, most: int) -> Path:
    """Writes a BEIR folder of one dev query with about `most` evenly spaced passages, and those judged; returns it."""
    query, judged = next(iter(read_qrels(eval_data, beir.SPLITS[0]).items()))
    qrels = {query: judged}
    every = -(-beir.count_passages(eval_data) // most)
    kept = (
        {"_id": passage, "title": "", "text": text}
        for number, (passage, text) in enumerate(read_passages(eval_data))
        if number % every == 0 or passage in judged
    )
    queries = read_queries(eval_data, qrels)
    beir.write(beir.Evaluation(corpus=kept, queries=queries, qrels={beir.SPLITS[0]: qrels}), folder)
    return folder


def trains_on_gpu(config: SearchConfig) -> bool:
    """Whether trials are to train on a GPU of this machine."""
    import torch

    return config.gpus_per_trial != 0 and torch.cuda.is_available()
