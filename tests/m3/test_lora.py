"""LoRA: the losses of peft's own models, and what is trained, merged, saved and refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Runner
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel

from tests.m3.test_m3_parity import UNIFIED, arguments, losses
from tests.support.m3_fixtures import make_model, make_rows
from tests.support.tensors import tensor_hash
from trainables.m3.arguments import build_arguments
from trainables.m3.base_models import BaseModels
from trainables.m3.embedding import ReachableEmbedding
from trainables.m3.runner import Runner
from trainables.m3.trainer import trained_state
from trainables.process import trial_process

LORA = {"use_lora": True, "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    make_model(folder / "model")
    make_model(folder / "bert", bert=True)
    make_rows(folder / "rows.jsonl")
    return folder


class PeftRunner(EncoderOnlyEmbedderM3Runner):  # type: ignore[misc]
    """FlagEmbedding's own runner over an encoder that peft has wrapped."""

    def load_tokenizer_and_model(self) -> Any:
        tokenizer, model = super().load_tokenizer_and_model()
        given = self.model_args
        config = LoraConfig(
            task_type=TaskType.FEATURE_EXTRACTION,
            r=given.lora_rank,
            lora_alpha=given.lora_alpha,
            lora_dropout=given.lora_dropout,
            target_modules=given.target_modules or ["query", "key", "value", "dense"],
        )
        model.model = get_peft_model(model.model, config)
        return tokenizer, model


@contextmanager
def runner_of(values: dict[str, Any], folder: Path, *, kind: str = "ours") -> Iterator[Any]:
    with trial_process(folder / f"{kind}.txt"):
        built = build_arguments(values, str(folder / kind))
        yield Runner(built, BaseModels(), [], folder / "tokens") if kind == "ours" else PeftRunner(*built)


@pytest.mark.parametrize(
    "changes",
    [{}, UNIFIED, {**UNIFIED, "gradient_checkpointing": True}, {"target_modules": ["query", "output.dense"]}],
    ids=["dense", "all heads", "gradient checkpointing", "some layers"],
)
def test_20_losses_equal_those_of_flagembedding_over_peft(changes: dict[str, Any], root: Path, tmp_path: Path) -> None:
    """In float64: Adam makes steps of what rounding leaves of a 0. The reference pads, ours lies end to end."""
    values = arguments(root, **LORA, **changes)
    found = {}
    for kind in ("peft", "ours"):
        with runner_of(values, tmp_path, kind=kind) as runner:
            runner.model.double()
            found[kind] = losses(runner)
    assert len(found["ours"]) == 20
    assert found["ours"] == pytest.approx(found["peft"], rel=1e-9)
    assert found["ours"][-1] != found["ours"][0]


def test_adapters_and_heads_are_trained_and_nothing_else(root: Path, tmp_path: Path) -> None:
    """A layer of 16 has 4 matrices of 16 x 16, one of 16 x 32 and one of 32 x 16: 4 x 4 x 32 + 2 x 4 x 48 = 896."""
    with runner_of(arguments(root, **LORA, **UNIFIED), tmp_path) as runner:
        trained = {name: part.numel() for name, part in runner.model.named_parameters() if part.requires_grad}
        assert runner.data_collator.layout.packed
        assert isinstance(runner.model.model.get_input_embeddings(), ReachableEmbedding)
    heads = {name: size for name, size in trained.items() if "lora_" not in name}
    assert heads == {
        "colbert_linear.weight": 256,
        "colbert_linear.bias": 16,
        "sparse_linear.weight": 16,
        "sparse_linear.bias": 1,
    }
    assert sum(trained.values()) - sum(heads.values()) == 2 * 896
    assert not any("pooler" in name for name in trained)


def test_one_seed_draws_the_same_adapters_and_another_one_others(root: Path, tmp_path: Path) -> None:
    found = []
    base = BaseModels()
    for seed in (1, 1, 2):
        with trial_process(tmp_path / "log.txt"):
            built = build_arguments(arguments(root, **LORA, seed=seed), str(tmp_path / "out"))
            found.append(tensor_hash(trained_state(Runner(built, base, [], tmp_path / "tokens").model)))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("model", ["model", "bert"])
def test_what_is_saved_is_a_plain_model_that_embeds_as_the_adapters_do(model: str, root: Path, tmp_path: Path) -> None:
    values = arguments(root, **LORA, **UNIFIED, model_name_or_path=str(root / model))
    tokens = torch.arange(5, 25).view(2, 10)
    with runner_of(values, tmp_path) as runner:
        runner.trainer.train()
        encoder = runner.model.model.eval()
        before = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
        runner.trainer.save_model(str(tmp_path / "saved"))
        after = runner.model.state_dict()
        with torch.no_grad(), runner.vocabulary.whole():
            adapted = encoder(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        with torch.no_grad(), runner.whole_model() as whole:
            assert {type(layer) for layer in whole.model.modules() if "inear" in type(layer).__name__} == {
                torch.nn.Linear
            }
            merged = encoder(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

    opened = AutoModel.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        found = opened(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
    torch.testing.assert_close(found, merged)
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)
    base = load_file(root / model / "model.safetensors")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == base.keys()
    changed = {name for name, tensor in saved.items() if not torch.equal(tensor, base[name])}
    assert changed == {name for name in base if name.endswith("weight") and base[name].ndim == 2} - {
        *(name for name in base if "embeddings" in name or "pooler" in name)
    }


def test_a_state_holds_what_is_trained(root: Path, tmp_path: Path) -> None:
    sizes = {}
    for name, changes in {"lora": LORA, "full": {}}.items():
        (tmp_path / name).mkdir()
        with runner_of(arguments(root, **changes, max_steps=2), tmp_path / name) as runner:
            runner.trainer.train()
            contents = runner.trainer.capture_state(tmp_path / name)
        sizes[name] = sum(tensor.numel() for tensor in contents["weights.pt"].values())
    assert sizes["lora"] == 2 * 896
    assert sizes["full"] > 2 * (4 * 256 + 2 * 512)


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(root: Path, tmp_path: Path) -> None:
    values = arguments(root, **LORA, target_modules=["query", "q_proj"])
    with (
        pytest.raises(ValueError, match=r"--target_modules q_proj: no linear layer .* it has dense, key, query, value"),
        runner_of(values, tmp_path),
    ):
        pass
