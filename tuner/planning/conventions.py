"""How a model was made to embed, as far as its own files say so, where the request says otherwise."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

_POOLING = "sentence_pooling_method"
_DEFAULT = "cls"
_METHODS = {
    "cls": "cls",
    "mean": "mean",
    "lasttoken": "last_token",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last_token",
}
"""Modes of sentence-transformers' ``Pooling``, and the switches that stood for them -> FlagEmbedding's method."""
_HEADS = ("colbert_linear.pt", "sparse_linear.pt")
"""Only BGE-M3, and what was trained from it, has them; its dense vector is that of the first token."""
_QUERY, _PASSAGE = "query_instruction_for_retrieval", "passage_instruction_for_retrieval"


def other_conventions(model: Path, arguments: Mapping[str, Any], varied: Collection[str]) -> Iterator[str]:
    """Yields a warning for each way in which a model is about to embed otherwise than it was made to.

    Args:
        model: Its folder.
        arguments: The user's.
        varied: Arguments of which the search tries several values.
    """
    if _POOLING not in varied:
        yield from _other_pooling(model, arguments.get(_POOLING))
    if str(arguments.get(_QUERY) or "").startswith("query:") and not arguments.get(_PASSAGE):
        yield f"--{_QUERY} without --{_PASSAGE}: e5 models were trained with 'passage: ' before every passage as well"


def _other_pooling(model: Path, given: str | None) -> Iterator[str]:
    own, asked = pooling_of(model), given or _DEFAULT
    if own is not None and own != asked:
        default = "" if given else " by default"
        yield f"--{_POOLING} is {asked}{default}, but the model's own 1_Pooling/config.json says {own}"
    elif own is None and given is None and not any((model / head).is_file() for head in _HEADS):
        yield f"--{_POOLING} is {_DEFAULT} by default, as BGE models pool; no file of this model says how it does"


def pooling_of(model: Path) -> str | None:
    """Returns how a model of sentence-transformers makes one vector of a text's; None: its folder does not say."""
    try:
        values = json.loads((model / "1_Pooling" / "config.json").read_text("utf-8"))
        modes = [str(values.get("pooling_mode")), *(name for name, is_on in values.items() if is_on is True)]
    except (OSError, ValueError, AttributeError):
        return None
    return next((_METHODS[mode] for mode in modes if mode in _METHODS), None)
