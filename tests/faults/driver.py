"""The command with a train function of `fault_trains`: ``python driver.py NAME FLAGS...``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

if __name__ == "__main__":
    from tests.faults import fault_trains
    from tuner.search.run import main

    sys.exit(main(sys.argv[2:], train=getattr(fault_trains, sys.argv[1])))
