"""The space `m3` with and without a teacher's scores: does distillation help on these data?

Contrastive loss alone often harms models of this kind, where a teacher's scores help (arXiv 2505.19274); on other data
it is the other way round, so it is searched. The rows must have ``pos_scores`` and ``neg_scores``, which
``python -m tuner.data mine ROWS --to FILE --teacher CROSS_ENCODER`` writes.
"""

from typing import Any

import optuna

from search_spaces.context import Context
from search_spaces.m3 import m3


def m3_kd(trial: optuna.Trial, context: Context) -> dict[str, Any]:
    """Suggests what `m3` does, and whether the model learns a teacher's scores."""
    distilled = trial.suggest_categorical("knowledge_distillation", [False, True])
    return {**m3(trial, context), "knowledge_distillation": distilled}
