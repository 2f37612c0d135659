"""``python -m tuner.report RUN_DIR``."""

import argparse
import sys
from collections.abc import Sequence

from tuner.errors import EXIT_DONE, EXIT_REQUEST, EXIT_STOPPED, RequestError
from tuner.versions import add_version


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command: writes the report and prints its path.

    Args:
        argv: Arguments without the program's name; None takes the process's own.

    Returns:
        0; 1 when the report cannot be written; or 2 when the directory is no run directory.
    """
    arguments = _parser().parse_args(argv)
    from tuner.report.page import READ, write_report
    from tuner.run_dir.names import REPORT_FILE
    from tuner.run_dir.store import open_run_dir, run_folder

    try:
        print(write_report(run_folder(arguments.run_dir, READ), arguments.storage))
        open_run_dir(arguments.run_dir).push([REPORT_FILE])
    except RequestError as error:
        for finding in error.findings:
            print(f"error: {finding}", file=sys.stderr)
        return EXIT_REQUEST
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_STOPPED
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tuner.report",
        description="Write report.html in the run directory of a search, or write it anew.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the run directory of a search: a path or a URL")
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="where the Optuna study is (default: as the search was told, else RUN_DIR/study.db)",
    )
    add_version(parser)
    return parser
