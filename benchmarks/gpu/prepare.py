"""The machine, and the models and rows of the checks."""

import importlib.metadata
import shutil
import subprocess

import torch

from benchmarks.gpu.bench import LONG, SHORT, Bench, Result

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "FlagEmbedding", "sentence-transformers", "pyarrow")


def prepare(bench: Bench) -> Result:
    """P: what the machine is; writes the models and rows, which the parts do themselves where this one is left out."""
    found: Result = {"passed": True, **{name: importlib.metadata.version(name) for name in PACKAGES}}
    if bench.cuda:
        found["device"] = torch.cuda.get_device_name()
        found["capability"] = torch.cuda.get_device_capability()
        found["free_gb"] = torch.cuda.mem_get_info()[0] / 1e9
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.used,clocks.sm", "--format=csv,noheader"]
        found["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    for name in bench.sizes:
        bench.model(name)
        bench.model(name, 0.1)
    for median in (SHORT, LONG):
        bench.rows(median)
    return found
