"""What a process that takes one core costs training on the CPU, with libgomp's own waiting and with a worker's.

Steps of a small encoder (MiniLM's size, random weights) in a process of their own, alone and beside a busy loop for
every second core, in turns. Threads that wait for each other spin: libgomp's default is 300,000 turns, a worker group
of a search has fewer (`tuner/cluster/slot.py`).

    python benchmarks/busy_cores.py [--seconds 10] [--rounds 3]

The last line is JSON: steps a second, medians over the rounds, and the ratios of ours to the default.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tuner.cluster.slot import worker_environment

WAITINGS: dict[str, dict[str, str]] = {"default": {}, "ours": worker_environment(gpus=0.0)}
_TOKENS, _LENGTH = 1024, 64


def main() -> None:
    """Measures, and prints a line a round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps_for", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps_for:
        print(_steps_a_second(options.steps_for))
        return
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for place, hogs in (("alone", 0), ("beside", max(1, (os.cpu_count() or 2) // 2))):
            with _busy(hogs):
                for waiting, variables in WAITINGS.items():
                    found.setdefault(f"{place}_{waiting}", []).append(_measured(variables, options.seconds))
        print({name: round(values[-1], 2) for name, values in found.items()}, flush=True)
    speeds = {name: round(statistics.median(values), 2) for name, values in found.items()}
    ratios = {
        f"ratio_{place}": round(speeds[f"{place}_ours"] / speeds[f"{place}_default"], 2)
        for place in ("alone", "beside")
    }
    print(json.dumps({"cores": os.cpu_count(), **speeds, **ratios}))


def _measured(variables: dict[str, str], seconds: float) -> float:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, __file__, "--steps_for", str(seconds)]
    return float(subprocess.run(command, env=kept | variables, check=True, capture_output=True, text=True).stdout)


@contextmanager
def _busy(processes: int) -> Iterator[None]:
    """Keeps cores busy for a block, one a process."""
    hogs = [multiprocessing.Process(target=_turn, daemon=True) for _ in range(processes)]
    for hog in hogs:
        hog.start()
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()


def _turn() -> None:
    while True:
        pass


def _steps_a_second(seconds: float) -> float:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536))
    ids = torch.randint(1000, 2000, (_TOKENS // _LENGTH, _LENGTH))
    done, began = -1, 0.0  # the first step is not counted
    while not began or time.perf_counter() - began < seconds:
        model(input_ids=ids).last_hidden_state[:, 0].square().mean().backward()
        done += 1
        began = began or time.perf_counter()
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
