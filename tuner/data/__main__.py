"""``python -m tuner.data``."""

import sys

from tuner.data.command_line import main

if __name__ == "__main__":
    sys.exit(main())
