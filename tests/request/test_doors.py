"""The doors of the program: ``python -m tuner`` and what its command says without a verb."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _tuner(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tuner", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_the_version_names_what_results_depend_on() -> None:
    done = _tuner("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("m3-tuner 0.2.0 (Python 3.")
    assert f"torch {version('torch')}, ray {version('ray')}, FlagEmbedding {version('FlagEmbedding')}" in done.stdout


def test_a_verb_is_the_module_of_its_name() -> None:
    done = _tuner("data", "check", "no-such-file.jsonl")
    assert done.returncode == 2
    assert "no-such-file.jsonl" in done.stdout + done.stderr


@pytest.mark.parametrize(("verb", "code"), [("", 0), ("--help", 0), ("serach", 2)])
def test_without_a_verb_all_of_them_are_shown(verb: str, code: int) -> None:
    done = _tuner(*([verb] if verb else []))
    assert done.returncode == code
    assert all(name in done.stdout for name in ("search", "data", "export", "report", "--version"))
