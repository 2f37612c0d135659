"""``python -m tuner.export``."""

import sys

from tuner.export.command import main

if __name__ == "__main__":
    sys.exit(main())
