"""How many tokens a model has positions for."""

import json
from pathlib import Path

_TABLES = ("bert", "distilbert", "electra", "albert", "ernie", "mobilebert", "convbert", "squeezebert", "luke")
"""Kinds of model whose positions are rows of a table."""
_TABLES_AFTER_PADDING = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "data2vec-text",
    "longformer",
)
"""Kinds whose positions begin after the padding's row of the table."""


def positions_of(model: Path, config_name: str | None = None) -> int | None:
    """Returns how many tokens the model in a folder has positions for, as its config.json says; None: no limit known.

    Raises:
        ValueError: The file is no JSON object.
    """
    folder = Path(config_name) if config_name and Path(config_name).is_dir() else model
    try:
        values = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{folder / 'config.json'} must hold a JSON object, but holds {type(values).__name__}")
    most, kind = values.get("max_position_embeddings"), values.get("model_type")
    if not isinstance(most, int) or str(values.get("position_embedding_type", "absolute")) != "absolute":
        return None
    if kind in _TABLES_AFTER_PADDING:
        padding = values.get("pad_token_id")
        return most - 1 - (1 if padding is None else int(padding))
    return most if kind in _TABLES else None
