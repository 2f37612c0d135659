"""How a model was made to embed, as far as its own files say so, where the request says otherwise."""

import json
import re
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
_E5 = re.compile(r"(^|[-_])e5([-_](?!.*instruct)|$)")
"""Of the names that those with the two prefixes have: those that follow instructions want other words."""
_HARM_UNPREFIXED = "without what it was made with, the base model scores too low, and training seems to gain"
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
    if not {_QUERY, _PASSAGE} & {*varied, *(name for name, value in arguments.items() if value is not None)}:
        yield from _missing_instructions(model)
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


def _missing_instructions(model: Path) -> Iterator[str]:
    """No file of e5's says what it wants before texts; its name does."""
    missing = f"--{_QUERY} and --{_PASSAGE} are missing"
    if prompts := _prompts(model):
        wanted = ", ".join(f"{name} {text!r}" for name, text in prompts.items())
        own = "the model's own config_sentence_transformers.json"
        yield f"{missing}, but {own} has prompts: {wanted}; {_HARM_UNPREFIXED}"
    elif _E5.search(_name(model)):
        yield f"{missing}: by its name this is an e5 model, which wants 'query: ' and 'passage: '; {_HARM_UNPREFIXED}"


def _name(model: Path) -> str:
    """What a folder is called; one of the Hub's cache is ``models--ORGANISATION--NAME/snapshots/COMMIT``."""
    in_cache = model.parent.name == "snapshots"
    return (model.parent.parent if in_cache else model).name.lower()


def _prompts(model: Path) -> dict[str, str]:
    """Returns what sentence-transformers puts before a kind of texts, where it is anything."""
    try:
        prompts = json.loads((model / "config_sentence_transformers.json").read_text("utf-8"))["prompts"]
        return {name: text for name, text in prompts.items() if text}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


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
