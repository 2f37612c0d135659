"""The check of the GPU path runs whole on a CPU, with tiny models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_check import PARTS, table

ROOT = Path(__file__).parents[2]


def test_a_table_names_what_was_missed() -> None:
    lines = table(
        [
            {"part": "1", "title": "losses", "passed": True, "seconds": 2.5},
            {"part": "13", "title": "attention", "passed": None, "seconds": 0.1},
            {"part": "7", "passed": False, "error": "its process ended: -9"},
        ]
    ).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["1", "13", "7"]
    assert "passed" in lines[1]
    assert " - " in lines[2]
    assert lines[3].endswith("its process ended: -9")
    assert "MISSED" in lines[3]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    command = [sys.executable, "benchmarks/gpu_check.py", "--tiny", "--seconds", "800", "--output", str(output)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert [result["part"] for result in results] == [part.name for part in PARTS]
    assert {result["part"]: result.get("error") for result in results if result["passed"] is False} == {}
    assert done.returncode == 0
