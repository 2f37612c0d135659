"""``python -m tuner.data``."""

import sys

from tuner.data.dataset import main

if __name__ == "__main__":
    sys.exit(main())
