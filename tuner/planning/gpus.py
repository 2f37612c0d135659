"""GPUs that a search on this machine would find missing only once Ray has started."""

import os
from pathlib import Path

from tuner.request.config import SearchConfig


def missing_gpus(config: SearchConfig) -> list[str]:
    """Returns what is wrong where a search on this machine asks for more GPUs than PyTorch sees.

    Those of a cluster are left to Ray, and so are several parts of one card (MIG), of which PyTorch sees one.
    """
    slots, given = config.concurrent_trials, config.gpus_per_trial
    has_parts = "MIG-" in os.environ.get("CUDA_VISIBLE_DEVICES", "")
    is_elsewhere = bool(config.address or os.environ.get("RAY_ADDRESS"))
    if is_elsewhere or has_parts or given == 0 or (given is None and slots == 1):
        return []
    import torch

    have = torch.cuda.device_count()
    each = float(have > 0) if given is None else given
    if each * slots <= have:
        return []
    from tuner.cluster.connection import address_of  # loads Ray, which the process may have joined

    if address_of(config):
        return []
    without = torch.version.cuda is None and Path("/dev/nvidia0").exists()
    hint = ", or install PyTorch with CUDA: this one is for CPUs" if without else ""
    return [
        f"--gpus_per_trial {each:g} x --concurrent_trials {slots} needs {each * slots:g} GPUs, but PyTorch sees {have} "
        f"here; lower one of them (--gpus_per_trial 0 trains on the CPU){hint}"
    ]
