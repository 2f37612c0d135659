"""The base model as a trial encodes: what a search space varies that is not training, told apart from training."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from trainables.scoring.settings import UNTRAINED_ARGUMENTS
from tuner.request.arguments import upstream_arguments
from tuner.run_dir.names import BASE_FOLDER, encoded_base_name


def own_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the user's own values of `UNTRAINED_ARGUMENTS`, upstream's defaults where the user gave none.

    Args:
        arguments: What the user asked for, by FlagEmbedding's names.
    """
    known = upstream_arguments()
    return {name: arguments.get(name, known[name].default) for name in UNTRAINED_ARGUMENTS if name in known}


def settings_of(params: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a trial encodes with otherwise than the user; empty where it encodes as the user does.

    Args:
        params: What the trial varies.
        own: From `own_settings`.
    """
    varied = (name for name in UNTRAINED_ARGUMENTS if name in params)
    return {name: params[name] for name in varied if params[name] != own.get(name)}


def base_folder(settings: Mapping[str, Any]) -> str:
    """Returns the folder under RUN/trials of the base model with `settings`: ``0000``, or ``0000-as-1a2b3c4d``."""
    if not settings:
        return BASE_FOLDER
    text = json.dumps(settings, sort_keys=True, default=str)
    return encoded_base_name(hashlib.sha256(text.encode()).hexdigest())


def shown_settings(settings: Mapping[str, Any]) -> str:
    """Returns settings as flags: ``--sentence_pooling_method mean``."""
    return " ".join(f"--{name} {_word(value)}" for name, value in settings.items())


def _word(value: Any) -> str:
    text = str(value)
    return text if text and not any(letter.isspace() or letter in "\"'$`\\" for letter in text) else json.dumps(text)
