"""What a cluster may come to have: the machines that are there, and those that an autoscaler would bring.

`ray up` leaves its configuration on the head, where a search's driver runs; KubeRay's autoscaler only says that it is
there, so that what it can bring is left to it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

BOOTSTRAP = "ray_bootstrap_config.yaml"
"""Written by `ray up` into the head's home."""


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A kind of machine."""

    resources: Mapping[str, float]
    """Of one machine, in Ray's names."""
    count: float = 1
    """How many of them there may be at most."""


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """The machines that trials may come to run on."""

    machines: Sequence[NodeType]
    """Those that are there."""
    to_come: Sequence[NodeType] = ()
    most_to_come: float = math.inf
    """Machines of all kinds together."""
    unknown: bool = False
    """There is an autoscaler, and what it brings is not known."""

    @property
    def grows(self) -> bool:
        """Whether an autoscaler may bring machines."""
        return self.unknown or bool(self.to_come)

    def most(self, resource: str) -> float:
        """Returns how much of a resource there may come to be."""
        return self.sum(lambda resources: resources.get(resource, 0.0))

    def sum(self, value: Callable[[Mapping[str, float]], float]) -> float:
        """Returns the sum of a value of each machine's resources, of the best machines that there may come to be."""
        if self.unknown:
            return math.inf
        left, total = self.most_to_come, sum(value(node.resources) * node.count for node in self.machines)
        for node in sorted(self.to_come, key=lambda node: value(node.resources), reverse=True):
            taken = min(left, node.count)
            total, left = total + taken * value(node.resources), left - taken
        return float(total)

    def kinds(self, resource: str) -> list[NodeType]:
        """Returns the kinds of machines that have a resource."""
        return [node for node in (*self.machines, *self.to_come) if node.resources.get(resource, 0.0) > 0]


def prospect(*, is_own: bool) -> Prospect:
    """Returns what the connected cluster has and may come to have; one of the search's own is this machine."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    machines = [NodeType(resources=node["Resources"]) for node in alive]
    path = Path.home() / BOOTSTRAP
    if path.exists() and not is_own:
        return launched(yaml.safe_load(path.read_text("utf-8")), machines)
    return Prospect(machines=machines, unknown=_has_autoscaler())


def launched(config: Mapping[str, Any], machines: Sequence[NodeType]) -> Prospect:
    """Returns the prospect of a cluster that `ray up` started from `config`, which has `machines` now."""
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    most = float(config.get("max_workers", 0))
    to_come = [
        NodeType(resources=kind.get("resources", {}), count=float(kind.get("max_workers", most)))
        for kind in workers.values()
    ]
    heads = [machine for machine in machines if "node:__internal_head__" in machine.resources]
    return Prospect(machines=heads, to_come=to_come, most_to_come=most)


def _has_autoscaler() -> bool:
    from ray import _raylet
    from ray.experimental.internal_kv import _internal_kv_get

    keys: Any = _raylet  # compiled: it has no types
    key, namespace = keys.GCS_AUTOSCALER_V2_ENABLED_KEY, keys.GCS_AUTOSCALER_STATE_NAMESPACE
    said = _internal_kv_get(key.encode(), namespace=namespace.encode())
    return bool(said == b"1")
