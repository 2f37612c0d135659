"""``python -m trainables.m3``: FlagEmbedding's M3 command, with its flags, and LoRA besides.

As FlagEmbedding's it trains and saves, and nothing else; ``torchrun -m trainables.m3`` trains on several workers.
"""

from collections.abc import Sequence

from trainables.m3.arguments import read_command_line
from trainables.m3.base_models import BaseModels
from trainables.m3.runner import Runner


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what the flags say into ``--output_dir``; adapters are merged there.

    Args:
        argv: arguments without the program's name; None takes the process's own.
    """
    Runner(read_command_line(argv), BaseModels(), []).run()


if __name__ == "__main__":
    main()
