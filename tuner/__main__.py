"""``python -m tuner VERB``: the console script where none is on the path."""

import sys

from tuner.cli import main

if __name__ == "__main__":
    sys.exit(main())
