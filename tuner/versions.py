"""Which versions are installed: of the program, and of the packages that results depend on."""

import argparse
import platform
from typing import Any

__version__ = "0.2.0"
"""Of the program."""
_NAMED = ("torch", "ray", "FlagEmbedding", "transformers", "optuna")
"""Packages that are named: results depend on them, and a report of a fault needs them."""


def versions() -> str:
    """Returns one line; the packages are asked for their metadata, not imported."""
    from importlib.metadata import version

    named = ", ".join(f"{name} {version(name)}" for name in _NAMED)
    return f"m3-tuner {__version__} (Python {platform.python_version()}, {named})"


def add_version(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Lets a command print its versions with ``--version``."""
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions of what is installed, and exit")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(versions())
        parser.exit()
