"""``python -m tuner.export RUN_DIR --to DIR``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tuner.errors import EXIT_DONE, EXIT_REQUEST, EXIT_STOPPED, BundleRefusedError, RequestError
from tuner.versions import add_version

_CHOICES = ("gpus", "trial", "trust_remote_code", "with_data", "onnx", "int8")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments without the program's name; None takes the process's own.

    Returns:
        0; 1 when a library here does not embed as training did, or the bundle cannot be written; or 2 when there is
        nothing to export, or no room for it.
    """
    arguments = _parser().parse_args(argv)
    from tuner.export.bundle import check_room, write_bundle
    from tuner.run_dir.store import run_folder

    try:
        check_room(arguments.to)
        chosen = {name: getattr(arguments, name) for name in _CHOICES}
        print(write_bundle(run_folder(arguments.run_dir, trial=arguments.trial), arguments.to, **chosen))
    except RequestError as error:
        for finding in error.findings:
            print(f"error: {finding}", file=sys.stderr)
        return EXIT_REQUEST
    except (BundleRefusedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_STOPPED
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tuner.export", description="Write the model that the verdict of a search recommends."
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the run directory of a finished search: a path or a URL")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write: a new or an empty one")
    parser.add_argument(
        "--trial", type=int, metavar="N", help="the model of that trial (default: the one that the verdict recommends)"
    )
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="workers that train.sh is for (default: as many as a trial had)"
    )
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run Python code that lies beside the model's weights (default: False)",
    )
    parser.add_argument(
        "--with_data",
        action="store_true",
        help="put the training data into the bundle, so that train.sh needs no run directory (default: False)",
    )
    parser.add_argument(
        "--onnx",
        action="store_true",
        help="write the heads as an ONNX graph, too; needs pip install 'm3-tuner[onnx]' (default: False)",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="with --onnx, write a second graph of 8-bit weights and say what it loses on dev (default: False)",
    )
    add_version(parser)
    return parser
