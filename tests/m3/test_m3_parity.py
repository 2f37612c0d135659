"""Our trainer's losses against those of FlagEmbedding's unmodified runner, step by step."""

from pathlib import Path
from typing import Any

import pytest
from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Runner

from tests.support.m3_fixtures import make_model, make_rows
from tests.support.varlen_kernels import kernels_on_cpu
from trainables.m3.arguments import build_arguments
from trainables.m3.base_models import BaseModels
from trainables.m3.runner import Runner
from trainables.m3.tokens import sorted_folders
from trainables.process import process_group, trial_process

STEPS = 20

UNIFIED = {"unified_finetuning": True, "use_self_distill": True}
SAME = {**UNIFIED, "same_dataset_within_batch": True, "per_device_train_batch_size": 3}
CASES: dict[str, dict[str, Any]] = {
    "dense only": {},
    "unified": {"unified_finetuning": True},
    "self-distillation from the start": UNIFIED,
    "self-distillation after 7 steps": {**UNIFIED, "self_distill_start_step": 7},
    "frozen encoder": {**UNIFIED, "fix_encoder": True},
    "mean pooling": {**UNIFIED, "sentence_pooling_method": "mean"},
    "last token, not normalised": {"sentence_pooling_method": "last_token", "normalize_embeddings": False},
    "not normalised": {**UNIFIED, "normalize_embeddings": False, "temperature": 1.0},
    "distillation with kl_div": {**UNIFIED, "knowledge_distillation": True, "kd_loss_type": "kl_div"},
    "distillation with m3_kd_loss": {**UNIFIED, "knowledge_distillation": True, "kd_loss_type": "m3_kd_loss"},
    "same dataset": {**SAME, "per_device_train_batch_size": 4},
    "same dataset, without in-batch negatives": {
        **SAME,
        "train_data": ["folders/plain", "folders/other_no_in_batch_neg"],
    },
    "same dataset, small ones merged": {
        **SAME,
        "small_threshold": 20,
        "train_data": ["folders/plain", "folders/other_no_in_batch_neg"],
    },
    "same dataset, small ones dropped": {
        **SAME,
        "small_threshold": 20,
        "drop_threshold": 30,
        "train_data": ["folders/plain", "folders/other_no_in_batch_neg"],
    },
    "same dataset, distillation": {
        **SAME,
        "knowledge_distillation": True,
        "train_data": ["folders/plain", "folders/other_no_in_batch_neg"],
    },
    "same dataset, symmetric": {**SAME, "query_instruction_for_retrieval": "w1 ", "train_data": ["symmetric.jsonl"]},
    "folder": {"train_data": ["folders/plain"]},
    "padded to multiples of 8": {**UNIFIED, "pad_to_multiple_of": 8},
    "instructions": {
        "query_instruction_for_retrieval": "w1",
        "query_instruction_format": "{} {}",
        "passage_instruction_for_retrieval": "w2",
        "passage_instruction_format": "{} {}",
    },
    "gradient accumulation": {**UNIFIED, "gradient_accumulation_steps": 2},
    "dropped last batch": {**UNIFIED, "per_device_train_batch_size": 3, "dataloader_drop_last": True},
    "kept last batch": {**UNIFIED, "per_device_train_batch_size": 3},
    "negatives across one device": {**UNIFIED, "negatives_cross_device": True},
    "gradient checkpointing": {**UNIFIED, "gradient_checkpointing": True},
    "shuffled text": {"shuffle_ratio": 0.5},
    "more negatives than there are": {"train_group_size": 9},
}


def arguments(root: Path, **changes: Any) -> dict[str, Any]:
    data = changes.pop("train_data", ["rows.jsonl"])
    return {
        "model_name_or_path": str(root / "model"),
        "train_data": [str(root / path) for path in data],
        "cache_path": str(root / "cache"),
        "per_device_train_batch_size": 4,
        "train_group_size": 3,
        "query_max_len": 12,
        "passage_max_len": 24,
        "learning_rate": 1e-3,
        "max_steps": STEPS,
        "warmup_steps": 0.1,
        "seed": 42,
        **changes,
    }


def losses(runner: EncoderOnlyEmbedderM3Runner) -> list[float]:
    """Trains, and returns the loss of every forward pass."""
    recorded: list[float] = []
    compute_loss = runner.trainer.compute_loss

    def record(*args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(*args, **kwargs)
        recorded.append(float(loss.detach()))
        return loss

    runner.trainer.compute_loss = record
    runner.trainer.train()
    return recorded


def trained(name: str, values: dict[str, Any], folder: Path, base: BaseModels, *, double: bool = True) -> list[float]:
    """Returns the losses of upstream or of ours, in float64: Adam makes steps of what rounding leaves of a 0."""
    with trial_process(folder / f"{name}.txt"), process_group(), sorted_folders():
        built = build_arguments(values, str(folder / name))
        cache = folder / "tokens"
        runner = EncoderOnlyEmbedderM3Runner(*built) if name == "upstream" else Runner(built, base, [], cache)
        if double:
            runner.model.double()
        return losses(runner)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    make_model(folder / "model")
    make_model(folder / "dropout", dropout=0.1)
    make_rows(folder / "rows.jsonl", scores=True)
    make_rows(folder / "symmetric.jsonl", kind="symmetric_sts")
    for name, sizes in {"plain": (12, 33, 14), "other_no_in_batch_neg": (24,)}.items():
        (folder / "folders" / name).mkdir(parents=True)
        for number, rows in enumerate(sizes):
            make_rows(folder / "folders" / name / f"{9 - number}.jsonl", rows, seed=number, scores=True)
    return folder


@pytest.fixture(scope="module")
def base() -> BaseModels:
    return BaseModels()


@pytest.mark.parametrize("case", CASES)
def test_losses_equal_upstreams(case: str, root: Path, tmp_path: Path, base: BaseModels) -> None:
    """A folder's files in the order of their names on both sides: upstream takes the file system's.

    Once as on a CPU, and once through the operator of a GPU's kernel.
    """
    values = arguments(root, **CASES[case])
    upstream, ours = (trained(name, values, tmp_path, base) for name in ("upstream", "ours"))
    assert len(ours) >= STEPS
    assert ours == pytest.approx(upstream, rel=1e-9)
    assert upstream[-1] != upstream[0]
    with kernels_on_cpu("efficient") as called:
        assert trained("kernel", values, tmp_path, base) == pytest.approx(ours, rel=1e-9)
    assert called


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}], ids=["plain", "gradient checkpointing"])
def test_full_determinism_draws_upstreams_dropout(changes: dict[str, Any], root: Path, tmp_path: Path) -> None:
    changes |= {**UNIFIED, "model_name_or_path": str(root / "dropout"), "full_determinism": True}
    upstream, ours = (
        trained(name, arguments(root, **changes), tmp_path, BaseModels()) for name in ("upstream", "ours")
    )
    assert ours == pytest.approx(upstream, rel=1e-9)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_sub_batches_change_no_loss(size: int, root: Path, tmp_path: Path, base: BaseModels) -> None:
    """Upstream itself fails with sub-batches of unequal lengths, so its whole batch is the reference."""
    found = []
    for sub_batch_size in (None, size):
        with trial_process(tmp_path / "log.txt"):
            built = build_arguments(arguments(root, **UNIFIED, sub_batch_size=sub_batch_size), str(tmp_path / "out"))
            found.append(losses(Runner(built, base, [])))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
