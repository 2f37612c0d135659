"""A local Ray cluster for the faults of a file."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.faults import fault_trains
from tests.support import fake
from tuner.cluster.connection import connected
from tuner.cluster.slot import Slots
from tuner.request.config import SearchConfig


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray with every core of this machine; its workers need not find this folder."""
    for module in (fake, fault_trains):
        ray.cloudpickle.register_pickle_by_value(module)
    with connected(SearchConfig()):
        yield


@pytest.fixture
def slots(cluster: None, tmp_path: Path) -> Slots:
    """One slot of one worker."""
    assert cluster is None
    return Slots(count=1, workers=1, cpus=1, gpus=0, folder=tmp_path / ".ray", start_seconds=40, silence_seconds=6)
