"""A trial from configuration to files, in this process."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.m3_fixtures import make_inputs, unified_arguments
from trainables.config import RungReport, TrialConfig
from trainables.failures import NonFiniteLoss
from trainables.trial.trial import run_trial


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, rows and held-out data that every test reads."""
    root = tmp_path_factory.mktemp("trial")
    return make_inputs(root, dropout=0.1)


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> TrialConfig:
    return TrialConfig(
        name="0007",
        directory=str(tmp_path / "trials" / "0007"),
        arguments=unified_arguments(folder) | {"num_train_epochs": 1, "warmup_ratio": 0.1, "use_self_distill": True},
        eval_data=str(folder / "eval"),
        metric="dense.ndcg_at_10",
        rungs=(0.25, 1.0),
    )


def run(config: TrialConfig) -> list[RungReport]:
    reports: list[RungReport] = []
    run_trial(config, lambda report: not reports.append(report))
    return reports


def test_rungs_files_and_checkpoint(config: TrialConfig) -> None:
    first, last = run(config)

    assert (first.rung, first.step, first.examples, first.last) == (1, 3, 12, False)  # ceil(0.25 x 10 steps)
    assert (last.rung, last.step, last.examples, last.last) == (2, 10, 40, True)
    assert {metric.split(".")[0] for metric in first.scores} == {"dense"}  # what the objective needs
    assert set(last.seconds) == {"training", "scoring", "overhead"}
    assert last.seconds["training"] > first.seconds["training"]

    directory = Path(config.directory)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [RungReport.from_dict(line) for line in lines] == [first, last]
    best = max(first, last, key=lambda report: report.value)
    assert json.loads((directory / "dev.json").read_text())["means"] == best.scores
    names = {file.name for file in (directory / "checkpoint").iterdir()}
    assert {"config.json", "model.safetensors", "colbert_linear.pt", "sparse_linear.pt", "tokenizer.json"} <= names
    assert "training_args.bin" not in names


def test_checkpoint_scores_as_the_trial_did(config: TrialConfig) -> None:
    best = max(run(config), key=lambda report: report.value)
    checkpoint = str(Path(config.directory) / "checkpoint")
    (again,) = run(replace(config, directory=config.directory + "-again", rungs=(), checkpoint=checkpoint))

    assert (again.rung, again.loss) == (0, None)
    assert again.scores == best.scores


def test_stops_where_the_report_says_no(config: TrialConfig) -> None:
    reports: list[RungReport] = []
    run_trial(config, lambda report: bool(reports.append(report)))
    assert [report.rung for report in reports] == [1]


def test_dense_only_without_unified_finetuning(config: TrialConfig) -> None:
    arguments = {**config.arguments, "unified_finetuning": False, "use_self_distill": False}
    (report,) = run(replace(config, arguments=arguments, rungs=(1.0,)))
    assert {metric.split(".")[0] for metric in report.scores} == {"dense"}
    assert not (Path(config.directory) / "checkpoint" / "colbert_linear.pt").exists()


def test_more_rungs_than_steps_are_all_reported(config: TrialConfig) -> None:
    arguments = {**config.arguments, "max_steps": 2}
    reports = run(replace(config, arguments=arguments, rungs=(0.1, 0.4, 1.0)))
    assert [(report.rung, report.step) for report in reports] == [(1, 1), (2, 1), (3, 2)]


def test_diverged_loss_is_an_error(config: TrialConfig) -> None:
    arguments = {**config.arguments, "learning_rate": 1e30, "max_grad_norm": 0}
    with pytest.raises(NonFiniteLoss, match="lower learning_rate"):
        run(replace(config, arguments=arguments))


def test_unknown_argument_is_refused(config: TrialConfig) -> None:
    with pytest.raises(ValueError, match="got learning_rat"):
        run(replace(config, arguments={**config.arguments, "learning_rat": 1e-3}))


@pytest.mark.integration
def test_third_trial_in_a_process_equals_the_trial_alone(config: TrialConfig) -> None:
    from trainables.m3.base_models import BaseModels

    base = BaseModels()
    for name, seed in (("first", 1), ("second", 2), ("third", 42)):
        arguments = {**config.arguments, "seed": seed}
        other = replace(config, directory=f"{config.directory}-{name}", arguments=arguments)
        run_trial(other, lambda _: True, base)
    run(config)

    alone, third = (load_file(f"{config.directory}{name}/checkpoint/model.safetensors") for name in ("", "-third"))
    assert all(torch.equal(alone[key], third[key]) for key in alone)


MEMORY = """
import json, sys
from pathlib import Path
from trainables.m3.base_models import BaseModels
from trainables.config import TrialConfig
from trainables.trial.trial import run_trial
base, config = BaseModels(), json.loads(sys.argv[1])
for number in range(13):
    run_trial(TrialConfig.from_dict({**config, "directory": f"{config['directory']}-{number}"}), lambda _: True, base)
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("VmRSS")))
"""
"""Runs trials in one process and prints its resident memory after each, in KiB."""


@pytest.mark.slow
def test_memory_after_ten_more_trials_is_that_after_the_first_ones(config: TrialConfig) -> None:
    """The first trials also import modules and fill torch's caches, so the third is the measure."""
    command = [sys.executable, "-c", MEMORY, json.dumps(config.to_dict())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    resident = [int(line) for line in printed.splitlines() if line.isdigit()]  # DeepSpeed prints, too
    assert resident[12] <= 1.02 * resident[2], resident
