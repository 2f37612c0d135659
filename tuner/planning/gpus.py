"""GPUs that a search on this machine would find missing only once Ray has started."""

from tuner.request.config import SearchConfig


def missing_gpus(config: SearchConfig) -> list[str]:
    """Returns what is wrong with ``--gpus_per_trial`` where the search runs on this machine, and not on a cluster."""
    if not config.gpus_per_trial:
        return []
    import torch

    from tuner.cluster.autoscaling import NodeType, Prospect
    from tuner.cluster.connection import address_of, too_few_gpus

    if address_of(config):
        return []
    here = Prospect(machines=[NodeType(resources={"GPU": float(torch.cuda.device_count())})])
    return too_few_gpus(config, config.gpus_per_trial, here)
