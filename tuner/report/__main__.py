"""``python -m tuner.report``."""

import sys

from tuner.report.command import main

if __name__ == "__main__":
    sys.exit(main())
