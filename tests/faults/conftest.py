"""A local Ray cluster for the faults of a file, and what must be left of a search: nothing."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake
import fault_trains
import pytest
import ray

from tuner.cluster import connected
from tuner.config import SearchConfig
from tuner.slot import Slots

_RAYS_OWN = ("PlacementGroupCleaner", "_AutoscalingCoordinatorActor", "PreemptionWatcher")
"""Actors that Ray keeps for as long as the cluster runs."""


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


def left_over(seconds: float = 30) -> dict[str, Any]:
    """What a search that ended still holds: nothing, after a moment."""
    from ray._private.state import actors

    for _ in range(int(2 * seconds)):
        alive = [a["ActorClassName"] for a in actors().values() if a["State"] != "DEAD"]
        groups = [g for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
        used = {n: ray.cluster_resources()[n] - ray.available_resources().get(n, 0) for n in ("CPU", "memory")}
        held = {
            "actors": [name for name in alive if name not in _RAYS_OWN],
            "placement_groups": groups,
            "resources": {name: amount for name, amount in used.items() if amount},
        }
        if not any(held.values()):
            return {}
        time.sleep(0.5)
    return held
