"""A model folder, loaded as the encoder takes it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModel


@dataclass
class Parts:
    """A checkpoint as our encoder takes it."""

    model: torch.nn.Module
    colbert_linear: torch.nn.Module | None
    sparse_linear: torch.nn.Module | None


def load_parts(checkpoint: Path, trust_remote_code: bool) -> Parts:
    """Returns a model folder's encoder and heads, on the CPU in float32."""
    model = AutoModel.from_pretrained(str(checkpoint), trust_remote_code=trust_remote_code, dtype=torch.float32)
    heads = [load_head(checkpoint / f"{name}_linear.pt") for name in ("colbert", "sparse")]
    return Parts(model, *heads)


def load_head(path: Path) -> torch.nn.Linear | None:
    """Returns a head of FlagEmbedding's layout; None where the folder has none."""
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    size_out, size_in = state["weight"].shape
    head = torch.nn.Linear(size_in, size_out)
    head.load_state_dict(state)
    return head
