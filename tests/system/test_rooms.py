"""What a process loads: reading a result, planning and handing a job on need no torch, no Ray, no database."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_DRIVERS_HEAVY = ("torch", "transformers", "ray", "FlagEmbedding", "mteb")


def _loaded(code: str, *packages: str) -> set[str]:
    """Runs `code` in a new process and returns those of `packages` that it has loaded."""
    ask = f"import sys\n{code}\nprint('\\n' + ' '.join(sorted(set({packages!r}) & sys.modules.keys())))"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


def _help(room: str) -> str:
    return (
        f"from tuner.{room}.__main__ import main\nimport contextlib\n"
        "with contextlib.suppress(SystemExit):\n    main(['--help'])"
    )


@pytest.mark.parametrize(
    "code",
    [
        "import tuner, tuner.api",
        "import tuner; tuner.load; tuner.SearchConfig()",
        _help("report"),
        _help("export"),
        _help("search"),
        "import tuner.schedule.agenda",
        "import tuner.verdict.result",
        "import tuner.cluster.submit",
    ],
)
def test_the_driver_starts_without_torch_and_ray(code: str) -> None:
    assert _loaded(code, *_DRIVERS_HEAVY) == set()


def test_a_worker_takes_a_job_without_a_database() -> None:
    assert _loaded("import tuner.cluster.staging", "sqlalchemy", "optuna") == set()


def test_a_command_that_loads_a_package_is_told() -> None:
    assert _loaded("import sqlalchemy", "sqlalchemy", "optuna") == {"sqlalchemy"}
