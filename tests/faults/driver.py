"""The command with a train function of `fault_trains`: ``python driver.py NAME FLAGS...``."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

if __name__ == "__main__":
    import fault_trains

    from tuner.search import main

    sys.exit(main(sys.argv[2:], train=getattr(fault_trains, sys.argv[1])))
