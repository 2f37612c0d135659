"""The space for LoRA (`use_lora`) of BGE-M3 and other large encoders: adapters learn with larger steps than weights.

* `learning_rate`, 2e-5 to 5e-4, middle 1e-4: 1e-4 in Tevatron's LoRA examples, 1e-4 to 5e-4 in sentence-transformers'
  advice on LoRA (its own examples: 2e-5), 3e-5 in Unsloth's BGE-M3 notebook. All of them have a `lora_alpha` of twice
  the rank, or about that: an adapter that counts less wants larger steps.
* `lora_rank`, 8 to 64 on a log scale, middle 23: 16 in NV-Retriever, 32 in FlagEmbedding's decoder examples and in
  Unsloth's notebook, 64 in sentence-transformers' examples and by FlagEmbedding's default. `lora_alpha` goes along, in
  the ratio to the rank that your own settings have. (By FlagEmbedding's defaults that is 16 to 64. Its examples give
  ``--lora_rank 32 --lora_alpha 64``.)
* `temperature`, `train_group_size` and `per_device_train_batch_size` as in the space `m3`, and from the same sources.
"""

from typing import Any

import optuna

from search_spaces.context import Context
from search_spaces.m3 import m3_batch

_USUAL = {"lora_alpha": 2, "lora_rank": 1}
"""Alpha to rank, where nobody has settings of their own."""


def m3_lora(trial: optuna.Trial, context: Context) -> dict[str, Any]:
    """Suggests learning rate, rank, temperature, group size and batch size for adapters of a large model."""
    own = {**_USUAL, **context.start}
    low, high = context.bounds("lora_rank", 8, 64)
    rank = trial.suggest_int("lora_rank", int(low), int(high), log=True)
    return {
        "learning_rate": trial.suggest_float("learning_rate", *context.bounds("learning_rate", 2e-5, 5e-4), log=True),
        "lora_rank": rank,
        "lora_alpha": own["lora_alpha"] * rank / own["lora_rank"],
        **m3_batch(trial, context),
    }
