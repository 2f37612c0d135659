"""``python -m tuner.export``."""

import sys

from tuner.export.bundle import main

if __name__ == "__main__":
    sys.exit(main())
