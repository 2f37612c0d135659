"""What every test may use. Nothing here needs a network; nothing is left running."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs, so that every machine runs the same; ``-m gpu`` shows them."""
    if "gpu" not in config.option.markexpr:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none."""
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing:
        import torch

        if not torch.cuda.is_available():
            for item in needing:
                item.add_marker(pytest.mark.skip(reason="no CUDA device is visible: run on a GPU machine with -m gpu"))


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
