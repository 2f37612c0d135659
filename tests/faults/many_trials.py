"""A search of many trials that cost nothing, on two slots: ``python many_trials.py RUN_DIR TRIALS SAMPLER``.

Says when the first trial has begun. The last line is JSON: seconds from the first rung to the end, seconds until then,
and the process's memory in MiB after each tenth of the trials.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


def main(run_dir: Path, trials: int, sampler: str) -> None:
    import psutil
    import ray

    from tests.faults import fault_trains
    from tests.support import fake
    from tuner.cluster.connection import connected
    from tuner.cluster.executor import run_on_ray
    from tuner.cluster.slot import Slots
    from tuner.request.config import SearchConfig

    started, first, memory = time.monotonic(), list[float](), list[float]()
    pruner = "none" if sampler == "random" else "successive_halving"
    config = SearchConfig(num_trials=trials, concurrent_trials=2, finalists=0, sampler=sampler, pruner=pruner)
    for module in (fake, fault_trains):
        ray.cloudpickle.register_pickle_by_value(module)
    with connected(config):
        agenda = fake.open_agenda(config, run_dir)

        def watch() -> None:
            if not first and any(row.rung or row.ended for row in agenda.rows):
                first.append(time.monotonic())
                print("begun", flush=True)
            if len(agenda.rows) >= (len(memory) + 1) * max(1, trials // 10):
                memory.append(psutil.Process().memory_info().rss / 2**20)

        slots = Slots(count=2, workers=1, cpus=1, gpus=0, folder=run_dir / ".ray")
        run_on_ray(agenda, slots, watch, train=fault_trains.steady)
        ended = time.monotonic()
    begun = first[0] if first else ended
    figures = {"seconds": ended - begun, "start_up": begun - started, "memory_mib": memory}
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
