"""What a cluster that was connected to consists of, in words."""

from collections import Counter
from collections.abc import Mapping

import ray

_KIND = "accelerator_type:"


def machines() -> str:
    """Returns the living machines of the connected cluster: ``1 x 4 CPUs; 2 x 16 CPUs, 4 GPUs (A10G)``."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    kinds = Counter(described(node["Resources"]) for node in nodes if node["Alive"])
    return "; ".join(f"{count} x {kind}" for kind, count in kinds.items())


def described(resources: Mapping[str, float]) -> str:
    """Returns one machine, from what Ray calls its resources."""
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    said = f"{cpus:g} CPU{'' if cpus == 1 else 's'}"
    if not gpus:
        return f"{said}, no GPU"
    names = ", ".join(sorted(name.removeprefix(_KIND) for name in resources if name.startswith(_KIND)))
    return f"{said}, {gpus:g} GPU{'' if gpus == 1 else 's'}" + (f" ({names})" if names else "")
