"""What training by adapters (LoRA) needs, looked at before anything starts."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tuner.errors import RequestError

_SECONDS = 300.0
_OPTIONS = ("lora_rank", "lora_alpha", "lora_dropout", "target_modules")
"""What says nothing without `use_lora`."""


def check_adapters(arguments: Mapping[str, Any], reached: Mapping[str, Sequence[Any]], model: Path) -> None:
    """Refuses what no trial could train adapters with.

    Args:
        arguments: The user's own.
        reached: Argument -> values that the space was seen to give it.
        model: Folder of the base model.

    Raises:
        RequestError: Adapters are described and not asked for, peft is not installed, or the model has no such layers.
    """
    given = [name for name in _OPTIONS if name in arguments or name in reached]
    if not any([arguments.get("use_lora"), *reached.get("use_lora", ())]):
        if given:
            raise RequestError([f"--{given[0]} has no effect without --use_lora True: add it, or drop the other"])
        return
    if find_spec("peft") is None:
        raise RequestError(["--use_lora needs peft, which is not installed: pip install 'peft>=0.20,<1'"])
    named = [targets for targets in (arguments.get("target_modules"), *reached.get("target_modules", ())) if targets]
    targets = sorted({name for targets in named for name in targets})
    if targets and (problem := _problem(model, targets, bool(arguments.get("trust_remote_code")))):
        raise RequestError([problem])


def _problem(model: Path, targets: Sequence[str], trusted: bool) -> str:
    """What is wrong with the names of layers, asked of another process: it takes torch and the model's class."""
    command = [sys.executable, "-m", "trainables.m3.lora", str(model), str(trusted), *targets]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (subprocess.SubprocessError, OSError):  # as for want of memory: the trials will tell
        return ""
    return done.stdout.strip()
