"""What every test may use. Nothing here needs a network; nothing is left running."""

import gc
import os
import resource
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

_LIMIT = 5.0
"""Seconds that a test without one of these marks may take."""
_UNLIMITED = ("slow", "integration", "ray", "gpu")
_A_LIBRARY = 100
"""Modules that a test loads for the first time: it waits for a library, which another test would have waited for."""


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs, so that every machine runs the same; ``-m gpu`` shows them."""
    if "gpu" not in config.option.markexpr:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none; with ``-n``, Ray's tests run one after the other, as files do."""
    for item in items:
        ray = item.get_closest_marker("ray") is not None
        item.add_marker(pytest.mark.xdist_group("ray" if ray else item.nodeid.partition("::")[0]))
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing:
        import torch

        if not torch.cuda.is_available():
            for item in needing:
                item.add_marker(pytest.mark.skip(reason="no CUDA device is visible: run on a GPU machine with -m gpu"))


def pytest_collection_finish() -> None:
    """Keeps what modules hold out of each garbage collection: a trial collects before and after it trains."""
    gc.collect()
    gc.freeze()


def _seconds() -> tuple[float, float]:
    """Of the clock, and of the processors that worked for this process and those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in used)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fails a test without a mark that took longer than it may, by the clock and by the processors.

    A loaded machine shows on the clock alone, several threads on the processors alone.
    """
    modules, begun = len(sys.modules), _seconds()
    result = yield
    taken = min(now - before for now, before in zip(_seconds(), begun, strict=True))
    quick = not any(item.get_closest_marker(name) for name in _UNLIMITED)
    if quick and taken > _LIMIT and len(sys.modules) - modules < _A_LIBRARY:
        pytest.fail(
            f"took {taken:.1f} s of at most {_LIMIT:g}: mark it as {', '.join(_UNLIMITED[:3])}, or make it quick"
        )
    return result


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a run with all heads, mean pooling and two workers; not to be changed."""
    from tests.support.export_fixtures import SECRET, UNIFIED, make_run
    from tuner.export.bundle import write_bundle

    root = tmp_path_factory.mktemp("export")
    arguments = {
        **UNIFIED,
        "sentence_pooling_method": "mean",
        "token": SECRET,
        "cache_dir": "/somewhere/cache",
        "output_dir": "out",
        "deepspeed": str(root / "ds.json"),
        "negatives_cross_device": True,
        "query_instruction_for_retrieval": "w7 w7",
        "query_instruction_format": "{}\\n{}",
    }
    (root / "ds.json").write_text('{"zero_optimization": {"stage": 0}}')
    run = make_run(root, arguments=arguments, options={"gpus_per_trial": 0, "workers_per_trial": 2})
    return write_bundle(run, run / "best")
