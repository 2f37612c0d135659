"""``python -m trainables.m3``: FlagEmbedding's M3 command, with its flags, and LoRA besides.

As FlagEmbedding's it trains and saves, and nothing else; ``torchrun -m trainables.m3`` trains on several workers.
"""

import sys
from collections.abc import Sequence

from trainables.m3.arguments import read_command_line
from trainables.m3.base_models import BaseModels
from trainables.m3.runner import Runner


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what the flags say into ``--output_dir``; adapters are merged there.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Raises:
        SystemExit: the process sees several GPUs, which are several workers'.
    """
    arguments = read_command_line(argv)
    if (gpus := arguments.training.n_gpu) > 1:
        print(
            f"error: a process trains on one GPU, but sees {gpus}: start `torchrun --nproc_per_node {gpus} -m "
            "trainables.m3` with the same flags, or set CUDA_VISIBLE_DEVICES to one of them",
            file=sys.stderr,
        )
        raise SystemExit(2)
    Runner(arguments, BaseModels(), []).run()


if __name__ == "__main__":
    main()
