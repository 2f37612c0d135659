"""What recorded tables say of searching fine-tunes: rungs, schedules, seeds, parameters, dev against test.

    python benchmarks/table_statistics.py                    # benchmarks/recorded/*.npz
    python benchmarks/table_statistics.py --synthetic 2      # made-up tables

For each task:

* each rung against the end: Kendall's tau over configurations, how often the final best is in the rung's top quarter
  (over bootstrap samples of the configurations), and how good the best of that quarter ends;
* the same for short runs with a schedule of their own, over the configurations that have one, beside the middle of the
  full run's schedule over the same configurations;
* the standard deviation between seeds of one configuration, beside that between configurations;
* the share of the variance that each parameter explains (Optuna's fANOVA and PED-ANOVA);
* where dev's best stands on test.
"""

import argparse
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial
from scipy.stats import kendalltau

from benchmarks.recorded_table import Floats, Integers, RecordedTable
from benchmarks.replay.synthetic import synthetic_table
from benchmarks.replay.tasks import ReplayTask
from tuner.verdict.statistics import pooled_spread

RECORDED = Path(__file__).with_name("recorded")
_RESAMPLES = 2000


def main() -> None:
    """Prints the statistics of every table, and as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", type=Path, help="recorded tables; default: all of benchmarks/recorded")
    parser.add_argument("--synthetic", type=int, default=0, metavar="N", help="N made-up tables instead")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    paths = options.tables or sorted(RECORDED.glob("*.npz"))
    tables = (
        {path.stem: RecordedTable.load(path) for path in paths}
        if not options.synthetic
        else {f"synthetic{task}": synthetic_table(task) for task in range(options.synthetic)}
    )
    print(json.dumps({name: describe(ReplayTask(name=name, table=table)) for name, table in tables.items()}))


def describe(task: ReplayTask) -> dict[str, Any]:
    """Prints and returns the statistics of one table."""
    print(
        f"\n{task.name}: {task.configs} configurations, {len(task.table.config)} runs, "
        f"{len(task.table.base_dev)} dev and {len(task.table.base_test)} test queries"
    )
    found = {
        "rungs": _say_rungs("full runs, scored on the way", _rungs(task)),
        "schedules": _schedules(task),
        "seeds": _seeds(task.table),
        "importance": _importance(task),
        "dev_and_test": _dev_and_test(task),
    }
    return json.loads(json.dumps(found, default=float))  # type: ignore[no-any-return]


def agreement(early: Floats, end: Floats) -> dict[str, float]:
    """Returns how well scores early on, shape (C,), rank the same configurations' ends."""
    keep = ~np.isnan(end)
    early, end = np.nan_to_num(early[keep], nan=-1.0), end[keep]
    quarter = max(1, len(end) // 4)
    top = np.argsort(-early, kind="stable")[:quarter]
    generator = np.random.default_rng(0)
    kept = 0
    for sample in generator.integers(0, len(end), (_RESAMPLES, len(end))):
        distinct = np.unique(sample)
        best = distinct[np.argmax(end[distinct])]
        kept += int((early[distinct] > early[best]).sum() < max(1, len(distinct) // 4))
    return {
        "tau": float(kendalltau(early, end).statistic),
        "rank_of_best": int((early > early[np.argmax(end)]).sum()) + 1,
        "best_in_top_quarter": kept / _RESAMPLES,
        "best_end_of_top_quarter": float(end[top].max()),
        "best_end": float(end.max()),
        "configurations": len(end),
    }


def _rungs(task: ReplayTask) -> dict[str, dict[str, float]]:
    return {
        f"{fraction:g}": agreement(task.dev[:, column], task.dev[:, -1])
        for column, fraction in enumerate(task.fractions[:-1])
    }


def _say_rungs(title: str, rungs: Mapping[str, Mapping[str, float]]) -> Mapping[str, Mapping[str, float]]:
    print(
        f"{title}\n{'rung':>8}{'tau':>8}{'rank of the best':>18}"
        f"{'best in top quarter':>21}{'best end of it':>16}{'of all':>9}"
    )
    for rung, row in rungs.items():
        print(
            f"{rung:>8}{row['tau']:>8.2f}{row['rank_of_best']:>11.0f} of {row['configurations']:<3.0f}"
            f"{row['best_in_top_quarter']:>21.2f}{row['best_end_of_top_quarter']:>16.4f}{row['best_end']:>9.4f}"
        )
    return rungs


def _schedules(task: ReplayTask) -> dict[str, dict[str, dict[str, float]]]:
    """Short runs of each kind against the same configurations' full runs, and the full runs' middles beside them."""
    table, found = task.table, dict[str, dict[str, dict[str, float]]]()
    kinds = {(str(s), float(b)) for s, b in zip(table.schedule, table.budget, strict=True)} - {("linear", 1.0)}
    for schedule, budget in sorted(kinds):
        rows = _first_of_each(table, table.rows(budget=budget, schedule=schedule))
        configs = table.config[rows]
        for column, fraction in enumerate(table.fractions):
            if fraction > budget + 1e-9 or (schedule == "linear" and not np.isclose(fraction, budget)) or fraction == 1:
                continue
            own, end = table.means("dev")[rows, column], task.dev[configs, -1]
            middle = {"own": agreement(own, end), "middle": agreement(task.dev[configs, column], end)}
            found[f"{schedule} over {budget:g}, at {fraction:g}"] = middle
    for name, rungs in found.items():
        _say_rungs(f"{name}; below it the middle of the full linear schedule", rungs)
    return found


def _first_of_each(table: RecordedTable, rows: Integers) -> Integers:
    _, first = np.unique(table.config[rows], return_index=True)
    return rows[first]


def _seeds(table: RecordedTable) -> dict[str, float]:
    """The deviation within configurations that have several seeds, and that between all configurations, at the end."""
    rows, found = table.rows(), dict[str, float]()
    for split in ("dev", "test"):
        ends = table.means(split)[rows, -1]
        groups = [ends[(table.config[rows] == config) & ~np.isnan(ends)] for config in np.unique(table.config[rows])]
        spread = pooled_spread([group.tolist() for group in groups])
        means = np.array([group[0] for group in groups if len(group)])
        top = np.sort(means)[::-1][: max(2, len(means) // 4)]
        found |= {
            f"{split}_seeds": 0.0 if spread is None else spread.deviation,
            f"{split}_configurations": float(means.std(ddof=1)),
            f"{split}_best_quarter": float(top.std(ddof=1)),
        }
    for split in ("dev", "test"):
        print(
            f"{split}: standard deviation between seeds {found[f'{split}_seeds']:.4f}, between configurations "
            f"{found[f'{split}_configurations']:.4f}, between those of the best quarter "
            f"{found[f'{split}_best_quarter']:.4f}"
        )
    return found


def _importance(task: ReplayTask) -> dict[str, dict[str, float]]:
    """Of the ends on dev; a configuration that diverged counts as the worst."""
    study = optuna.create_study(direction="maximize")
    space, ends = task.distributions(), task.dev[:, -1]
    for config, value in enumerate(np.nan_to_num(ends, nan=float(np.nanmin(ends)))):
        params = task.arguments(config)
        study.add_trial(create_trial(value=float(value), params=params, distributions=space))
    evaluators = {"fanova": FanovaImportanceEvaluator(seed=0), "ped_anova": PedAnovaImportanceEvaluator()}
    found = {name: get_param_importances(study, evaluator=evaluator) for name, evaluator in evaluators.items()}
    for name, shares in found.items():
        print(f"importance by {name}: " + ", ".join(f"{parameter} {share:.2f}" for parameter, share in shares.items()))
    return found


def _dev_and_test(task: ReplayTask) -> dict[str, float]:
    dev, test = np.nan_to_num(task.dev[:, -1]), np.nan_to_num(task.test[:, -1])
    best = int(np.argmax(dev))
    found = {
        "tau": float(kendalltau(dev, test).statistic),
        "test_of_dev_best": float(test[best]),
        "test_best": float(test.max()),
        "rank_on_test": int((test > test[best]).sum()) + 1,
        "base_test": task.base_test,
    }
    print(
        f"dev's best has {found['test_of_dev_best']:.4f} on test, rank {found['rank_on_test']} of {task.configs}; "
        f"test's best {found['test_best']:.4f}, base model {found['base_test']:.4f}; "
        f"tau of dev and test {found['tau']:.2f}"
    )
    return found


if __name__ == "__main__":
    main()
