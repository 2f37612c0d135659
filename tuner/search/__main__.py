"""``python -m tuner.search``."""

import sys

from tuner.search.run import main

if __name__ == "__main__":
    sys.exit(main())
