"""What must be left of a search that ended: nothing."""

import time
from typing import Any

import ray

_RAYS_OWN = ("PlacementGroupCleaner", "_AutoscalingCoordinatorActor", "PreemptionWatcher")
"""Actors that Ray keeps for as long as the cluster runs."""


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
