"""The console script: ``tuner <verb>`` is ``python -m tuner.<verb>``."""

import importlib
import sys

from tuner.errors import printable
from tuner.versions import versions

_VERBS = {
    "search": "search hyperparameters; the embedded example without flags",
    "data": "check training data; mine hard negatives",
    "export": "write the bundle of a finished search",
    "report": "write report.html of a finished search",
}


def main() -> int:
    """Runs the verb named by the first argument with the rest; returns its exit code."""
    verb, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if verb in _VERBS:
        return int(importlib.import_module(f"tuner.{verb}.__main__").main(arguments))
    if verb == "--version":
        print(versions())
        return 0
    if verb not in ("", "-h", "--help"):
        print(f"error: no command {printable(verb)!r}; there are {', '.join(_VERBS)}", file=sys.stderr)
    verbs = "\n".join(f"  {name:8} {text}" for name, text in _VERBS.items())
    print(f"usage: tuner VERB [--help] ...\n       tuner --version\n\n{verbs}")
    return 0 if verb in ("", "-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main())
