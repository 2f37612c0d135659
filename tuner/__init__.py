"""Finds the hyperparameters that make a fine-tuned BGE-M3 retrieval model really better, and proves it.

The names below are imported when they are first used: ``import tuner`` loads neither torch nor Ray.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tuner.versions import __version__

if TYPE_CHECKING:
    from tuner.api import Result, best_config, export_best, load, run
    from tuner.request.config import SearchConfig

__all__ = ["Result", "SearchConfig", "__version__", "best_config", "export_best", "load", "run"]

_HOMES = {"SearchConfig": "tuner.request.config"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tuner' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "tuner.api")), name)
