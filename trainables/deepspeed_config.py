"""Which DeepSpeed configurations a trial can train with. Needs neither torch nor DeepSpeed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DS_STAGE0 = Path(__file__).parent / "ds_stage0.json"
"""FlagEmbedding's published settings, which its package lacks."""


def check_deepspeed(config: str | Mapping[str, Any]) -> None:
    """Refuses a configuration that would fail in, or after, the first trial.

    Args:
        config: what `deepspeed` names: a JSON file, or its contents.

    Raises:
        ValueError: the file is no JSON object, or the stage of ZeRO is 3.
    """
    if isinstance(config, Mapping):
        values: Any = config
    else:
        try:
            values = json.loads(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"deepspeed must name a JSON file, but {config} cannot be read: {error}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"deepspeed must name a JSON object, but {config} holds a {type(values).__name__}")
    stage = values.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2):
        raise ValueError(
            f"zero_optimization.stage must be 0, 1 or 2, but got {stage!r}: stage 3 splits the weights over the "
            "workers, and neither FlagEmbedding's checkpoint nor the scores at a rung can be made from a part of "
            "them. An embedding model fits on one device: use stage 1 or 2, or sub_batch_size for less memory"
        )
