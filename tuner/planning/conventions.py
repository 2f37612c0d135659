"""How a model was made to embed, as far as its own files say so, where the request says otherwise."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainables.names import HEADS
from tuner.request.arguments import upstream_arguments

_POOLING = "sentence_pooling_method"
_QUERY, _PASSAGE = "query_instruction_for_retrieval", "passage_instruction_for_retrieval"
_SWITCH = "pooling_mode_"
_METHODS = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last_token"}
"""Modes of sentence-transformers' ``Pooling``, and the switches that stood for them -> FlagEmbedding's method."""
_HARM = "pooled otherwise than it was made, the base model scores too low, and training seems to gain"


def other_conventions(model: Path, arguments: Mapping[str, Any], varied: Collection[str]) -> Iterator[str]:
    """Yields a warning for each way in which a model is about to embed otherwise than it was made to.

    Args:
        model: Its folder.
        arguments: The user's.
        varied: Arguments of which the search tries several values.
    """
    if _POOLING not in varied:
        yield from _other_pooling(model, arguments.get(_POOLING))
    is_one_sided = str(arguments.get(_QUERY) or "").startswith("query:") and arguments.get(_PASSAGE) is None
    if is_one_sided and _PASSAGE not in varied:
        yield f"--{_QUERY} without --{_PASSAGE}: if this is an e5 model, it wants 'passage: ' before passages as well"


def _other_pooling(model: Path, given: str | None) -> Iterator[str]:
    asked = given or str(upstream_arguments()[_POOLING].default)
    modes, default = pooling_modes(model), "" if given else " by default"
    if modes and [_METHODS.get(mode) for mode in modes] != [asked]:
        own = " and ".join(modes)
        yield f"--{_POOLING} is {asked}{default}, but the model's own 1_Pooling/config.json says {own}: {_HARM}"
    elif not modes and not given and not any((model / head).is_file() for head in HEADS):
        yield (
            f"--{_POOLING} is {asked} by default, as BGE models pool; no file of this model says how it does. Its card "
            f"does: give the flag (e5 wants mean, and 'query: ' and 'passage: ' as instructions); {_HARM}"
        )


def pooling_modes(model: Path) -> list[str]:
    """Returns how a model of sentence-transformers makes one vector of a text's; none where its folder does not say."""
    try:
        values = json.loads((model / "1_Pooling" / "config.json").read_text("utf-8"))
        switched = [
            name.removeprefix(_SWITCH) for name, on in values.items() if name.startswith(_SWITCH) and on is True
        ]
        named = values.get("pooling_mode", [])
    except (OSError, ValueError, AttributeError):
        return []
    return [*([named] if isinstance(named, str) else map(str, named)), *switched]
