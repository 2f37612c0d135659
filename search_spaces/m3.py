"""The space for BGE-M3 and other large encoders: the four numbers that people guess.

The ranges enclose what was published for bge-m3, bge, e5 and their kin, and their middles are usual values (of the
first two on a log scale; sizes are linear, which found better ones on the recorded tables, see benchmarks/LOG.md):

* `learning_rate`, 2e-6 to 5e-5, middle 1e-5: 1e-5 in FlagEmbedding's M3 example, NVIDIA's recipe (it sweeps 5e-6 to
  4e-5) and CLP on bge-m3 (arXiv 2412.17364); 1e-5 or 5e-6 say its authors (FlagEmbedding#497); 3e-5 in Snowflake's
  arctic-embed; 5e-5 in BGE-M3's own unsupervised stage (paper, App. B.1).
* `temperature`, 0.01 to 0.05, middle 0.022: 0.02 in FlagEmbedding, NVIDIA, Nomic and CLP; "0.01 or 0.02, larger is
  generally worse" (FlagEmbedding#97); 0.05 is sentence-transformers' default.
* `train_group_size`, 2 to 16, middle 9: 8 in the BGE-M3 paper, 5 in NVIDIA's recipe and NV-Retriever, 11 in Snowflake's
  and Nomic's.
* `per_device_train_batch_size`, 2 to 256, middle 129: 1,152 in all in the BGE-M3 paper (Table 9), 256 Nomic, 128
  NVIDIA.

Large batches are exact on small cards: `sub_batch_size`, which is chosen so that a step fits, gives the whole batch's
gradients. The warm-up stays as you set it: all the sources are at 0.03 to 0.1, and it matters least.
"""

from typing import Any

import optuna

from search_spaces.context import Context


def m3(trial: optuna.Trial, context: Context) -> dict[str, Any]:
    """Suggests learning rate, temperature, group size and batch size for a large model."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", *context.bounds("learning_rate", 2e-6, 5e-5), log=True),
        **m3_batch(trial, context),
    }


def m3_batch(trial: optuna.Trial, context: Context) -> dict[str, Any]:
    """Suggests what a query is compared with, and how sharply: temperature, group size and batch size."""
    return {
        "temperature": trial.suggest_float("temperature", *context.bounds("temperature", 0.01, 0.05), log=True),
        "train_group_size": trial.suggest_int("train_group_size", *context.group_bounds(2, 16)),
        "per_device_train_batch_size": trial.suggest_int("per_device_train_batch_size", *context.batch_bounds(2, 256)),
    }
