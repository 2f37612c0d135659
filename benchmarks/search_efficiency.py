"""How little compute a search needs to be as good as sixty random full trials: replays on recorded tables.

Every strategy of ours runs through the product's own study and agenda; only training is read off the table. The peers
run in the same call: random search and Optuna's TPE and GP with full trials, Ray's OptunaSearch with its ASHA, one
cheap rung with one of eight kept, and Hyperband. All of them begin with the user's own settings, any configuration of
the table. Compute counts the examples trained and the passages scored.

    python benchmarks/search_efficiency.py                              # benchmarks/recorded/*.npz, 200 replays each
    python benchmarks/search_efficiency.py --strategies default gp      # others of benchmarks/replay/strategies.py
    python benchmarks/search_efficiency.py --synthetic 2 --replays 20   # made-up tables
    python benchmarks/search_efficiency.py --picture docs/search_efficiency.svg

The last line is JSON. Of the mean over tasks, `compute_vs_random60` is the share of the compute of sixty random full
trials at which the mean regret on dev is theirs, and `compute_vs_tpe_full` the same compute over what TPE without
pruning needs for it; null: not reached. The strategy is chosen for each task on the other ones.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.recorded_table import Floats, RecordedTable
from benchmarks.replay.peers import PEERS
from benchmarks.replay.picture import draw
from benchmarks.replay.regret import (
    RANDOM_TRIALS,
    WANTED,
    Ends,
    Regret,
    chosen_without,
    full_cost,
    mean_curve,
    replay_all,
    search_all,
    share_to_reach,
)
from benchmarks.replay.strategies import CANDIDATES, OURS
from benchmarks.replay.synthetic import synthetic_table
from benchmarks.replay.tasks import ReplayTask

RECORDED = Path(__file__).with_name("recorded")
_SHOWN = (1 / 32, 1 / 16, 1 / 8, 1 / 4)

_TRIALS = (8, 16, 32)
_FIXED = ("default", "before")

Regrets = Mapping[tuple[str, str], Regret]


def main() -> None:
    """Replays, and prints what came of it."""
    options = _options()
    tasks = [ReplayTask(name=name, table=table) for name, table in _tables(options).items()]
    names = [*PEERS, *dict.fromkeys([*options.strategies, *_FIXED])]
    regrets = replay_all(tasks, names, replays=options.replays, processes=options.processes)
    for task in tasks:
        _say_task(task, names, regrets)
    candidates = [name for name in options.strategies if name != "before"]
    chosen = {task.name: chosen_without(task.name, candidates, regrets) for task in tasks}
    print("chosen on the other tasks: " + ", ".join(f"{name} for {task}" for task, name in chosen.items()))
    wholes = max(2, options.replays // 4)
    ends = search_all(tasks, _FIXED, options.trials, replays=wholes, processes=options.processes)
    searches = {str(count): {name: _mean_end(tasks, name, count, ends) for name in _FIXED} for count in options.trials}
    for count, found in searches.items():
        print(f"whole searches of {count} trials, mean over tasks: {found}")
    if options.picture:
        shown = {name: mean_curve(regrets[task.name, name] for task in tasks) for name in [*PEERS, *_FIXED]}
        draw(
            shown,
            options.picture,
            [(each["default"]["share"], each["default"]["regret"]) for each in searches.values()],
        )
    print(json.dumps({**_summary(tasks, chosen, regrets, options.replays), "searches": searches}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", type=Path, help="recorded tables; default: all of benchmarks/recorded")
    parser.add_argument("--synthetic", type=int, default=0, metavar="N", help="N made-up tables instead")
    parser.add_argument("--replays", type=int, default=200, help="searches a strategy and task")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--strategies", nargs="+", choices=sorted(OURS), default=CANDIDATES)
    parser.add_argument("--trials", type=int, nargs="*", default=_TRIALS, help="of whole searches")
    parser.add_argument("--picture", type=Path, help="SVG of regret over compute")
    return parser.parse_args()


def _tables(options: argparse.Namespace) -> dict[str, RecordedTable]:
    if options.synthetic:
        return {f"synthetic{task}": synthetic_table(task) for task in range(options.synthetic)}
    paths = options.tables or sorted(RECORDED.glob("*.npz"))
    if not paths:
        raise SystemExit(f"{RECORDED} holds no table: record one (benchmarks/record_table.py), or give --synthetic 2")
    return {path.stem: RecordedTable.load(path) for path in paths}


def _say_task(task: ReplayTask, names: Sequence[str], regrets: Regrets) -> None:
    dev, test = task.best
    level, interval = regrets[task.name, "random"].at(1.0)
    print(
        f"\n{task.name}: {task.configs} configurations, best {dev:.4f} on dev and {test:.4f} on test, base model "
        f"{task.base_dev:.4f} and {task.base_test:.4f}; one scoring costs {task.scoring:.3f} of a full training\n"
        f"{RANDOM_TRIALS} random full trials ({full_cost(task):.0f} full trainings with their scorings): regret "
        f"{level:.4f} ({interval[0]:.4f} to {interval[1]:.4f}) on dev"
    )
    heads = "".join(f"{f'1/{1 / share:.0f}':>24}" for share in _SHOWN)
    print("regret on dev at a share of that compute, 95% interval over replays")
    print(f"{'':16}{heads}{'test at 1/8':>12}{'reached at':>12}")
    for name in names:
        regret = regrets[task.name, name]
        cells = []
        for share in _SHOWN:
            mean, (low, high) = regret.at(share)
            cells.append(f"{mean:.4f} ({low:.4f}-{high:.4f})")
        reached = share_to_reach(regret.mean(), level)
        shown = "-" if reached is None else f"{reached:.3f}"
        print(
            f"{name:<16}"
            + "".join(f"{cell:>24}" for cell in cells)
            + f"{regret.at(WANTED, 'test')[0]:>12.4f}{shown:>12}"
        )


def _of_chosen(chosen: Mapping[str, str], regrets: Regrets) -> Floats:
    return mean_curve(regrets[task, name] for task, name in chosen.items())


def _mean_end(
    tasks: Sequence[ReplayTask], name: str, trials: int, ends: Mapping[tuple[str, str, int], Ends]
) -> dict[str, float]:
    """Share of the compute of 60 random full trials, and regret on dev and test, of whole searches."""
    own = [ends[task.name, name, trials] for task in tasks]
    means = {"share": 4, "regret": 5, "regret_test": 5}
    columns = ([each.share for each in own], [each.dev for each in own], [each.test for each in own])
    return {
        key: round(float(np.mean(column)), digits) for (key, digits), column in zip(means.items(), columns, strict=True)
    }


def _summary(
    tasks: Sequence[ReplayTask], chosen: Mapping[str, str], regrets: Regrets, replays: int
) -> dict[str, object]:
    def of(name: str) -> Floats:
        return mean_curve(regrets[task.name, name] for task in tasks)

    level = float(of("random")[-1])
    tpe = share_to_reach(of("tpe_full"), level)

    def ratios(curve: Floats) -> dict[str, float | None]:
        share = share_to_reach(curve, level)
        over_tpe = None if share is None or tpe is None else round(share / tpe, 4)
        return {
            "compute_vs_random60": None if share is None else round(share, 4),
            "compute_vs_tpe_full": over_tpe,
        }

    eighth = {name: sum(regrets[task.name, name].at(WANTED)[0] for task in tasks) / len(tasks) for name in _FIXED}
    ours = sum(regrets[task, name].at(WANTED)[0] for task, name in chosen.items()) / len(chosen)
    return {
        "tasks": [task.name for task in tasks],
        "replays": replays,
        **ratios(_of_chosen(chosen, regrets)),
        "regret": round(ours, 5),
        "regret_random60": round(level, 5),
        **{name: {**ratios(of(name)), "regret": round(eighth[name], 5)} for name in _FIXED},
    }


if __name__ == "__main__":
    main()
