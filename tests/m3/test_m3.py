"""FlagEmbedding's classes as subclassed: arguments, gradients, special tokens, base models."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
    EncoderOnlyEmbedderM3Model,
    EncoderOnlyEmbedderM3Runner,
    EncoderOnlyEmbedderM3TrainingArguments,
)
from transformers import AutoModel

from tests.support.m3_fixtures import make_model, make_rows, text
from trainables.m3.__main__ import main
from trainables.m3.arguments import build_arguments
from trainables.m3.base_models import BaseModels
from trainables.m3.batching import Layout
from trainables.m3.runner import Model, Runner
from trainables.m3.tokens import Tokeniser
from trainables.process import trial_process
from trainables.varlen import attend_text_by_text


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("m3")
    make_model(folder / "model")
    make_model(folder / "bert", bert=True)
    make_rows(folder / "rows.jsonl", rows=8)
    return folder


def arguments(root: Path, **changes: Any) -> dict[str, Any]:
    values = {"model_name_or_path": str(root / "model"), "train_data": str(root / "rows.jsonl"), "use_cpu": True}
    return {**values, "cache_path": str(root / "cache"), **changes}


def test_arguments_of_older_transformers_are_understood(root: Path) -> None:
    built = build_arguments(arguments(root, warmup_ratio=0.1, overwrite_output_dir=True), "out")
    assert built.training.warmup_steps == 0.1
    assert built.data.train_data == [str(root / "rows.jsonl")]
    assert built.training.logging_nan_inf_filter is False
    assert built.training.save_strategy == "no"


def test_weights_in_16_bits_are_trained_in_float32(root: Path, tmp_path: Path) -> None:
    """transformers 5 loads float16 where a folder says so: Adam's second moments were 0 there, and steps huge."""
    half = AutoModel.from_pretrained(root / "model").half()
    half.save_pretrained(tmp_path)
    chosen = build_arguments(arguments(root, model_name_or_path=str(tmp_path)), "out").model
    base = BaseModels()
    for _ in range(2):  # as loaded, and as kept
        encoder = base.model(EncoderOnlyEmbedderM3Runner.get_model, chosen)["model"]
        assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
        for name, weight in half.state_dict().items():
            assert torch.equal(encoder.state_dict()[name], weight.float())


def test_unknown_arguments_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match="but got colour, temprature"):
        build_arguments(arguments(root, temprature=1, colour=2), "out")


def test_several_gpus_are_several_workers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers would let one process drive them all, which breaks in the first step."""
    monkeypatch.setattr(EncoderOnlyEmbedderM3TrainingArguments, "n_gpu", 2)
    flags = ["--model_name_or_path", str(root / "model"), "--train_data", str(root / "rows.jsonl")]
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--output_dir", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "torchrun --nproc_per_node 2 -m trainables.m3" in capsys.readouterr().err


def models(root: Path, **changes: Any) -> tuple[EncoderOnlyEmbedderM3Model, Model]:
    """Returns upstream's model and ours with the same weights, in float64."""
    found = []
    for kind in (EncoderOnlyEmbedderM3Model, Model):
        torch.manual_seed(0)
        base = BaseModels()
        model_arguments = build_arguments(arguments(root), "out").model
        parts = base.model(EncoderOnlyEmbedderM3Runner.get_model, model_arguments)
        found.append(
            kind(parts, tokenizer=base.tokenizer(model_arguments), temperature=0.1, **changes).double().train()
        )
    return found[0], found[1]


def layout_of(model: Model, sub_batch_size: int | None = None, packed: bool = False) -> Layout:
    return Layout(
        pad_token_id=model.tokenizer.pad_token_id,
        special_tokens=tuple(model.special_tokens),
        pad_to_multiple_of=None,
        padding_side="right",
        sub_batch_size=sub_batch_size,
        group_cost=20,
        packed=packed,
        padding_position=model.tokenizer.pad_token_id,
        like_upstream=False,
    )


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def check_gradients(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    "changes",
    [{"use_self_distill": True}, {"unified_finetuning": False}, {"sentence_pooling_method": "mean"}],
    ids=["all heads", "dense", "mean pooling"],
)
@pytest.mark.parametrize("sub_batch_size", [None, 1, 3], ids=["whole", "sub-batches of 1", "of 3"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_gradients_equal_upstreams(
    root: Path, changes: dict[str, Any], sub_batch_size: int | None, packed: bool
) -> None:
    rng = random.Random(3)
    sides = [text(rng, 8) for _ in range(3)], [text(rng, 30) for _ in range(9)]
    upstream, ours = models(root, normalize_embeddings=True, **changes)
    ours.sub_batch_size = sub_batch_size
    if packed:
        attend_text_by_text(ours.model)
    tokenizer = upstream.tokenizer
    padded = [tokenizer(side, padding=True, return_tensors="pt") for side in sides]
    expected = upstream(*({k: v for k, v in side.items() if k != "token_type_ids"} for side in padded)).loss
    layout = layout_of(ours, sub_batch_size=sub_batch_size, packed=packed)
    tokenise = Tokeniser(tokenizer, 64)
    loss = ours(**layout.batch(*(tokenise(side) for side in sides))).loss

    torch.testing.assert_close(loss, expected)
    check_gradients(gradients(ours, loss), gradients(upstream, expected))


@pytest.mark.parametrize("head", ["dense", "sparse", "colbert"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_each_heads_scores_and_gradients_equal_upstreams(root: Path, head: str, packed: bool) -> None:
    rng = random.Random(5)
    sides = [text(rng, 8) for _ in range(3)], [text(rng, 30) for _ in range(9)]
    upstream, ours = models(root, unified_finetuning=True, normalize_embeddings=True)
    if packed:
        attend_text_by_text(ours.model)
    padded = [upstream.tokenizer(side, padding=True, return_tensors="pt") for side in sides]
    masks = [side.pop("attention_mask") for side in padded]
    wanted = [
        upstream.encode({"input_ids": side["input_ids"], "attention_mask": mask})
        for side, mask in zip(padded, masks, strict=True)
    ]
    tokenise = Tokeniser(upstream.tokenizer, 64)
    batch = layout_of(ours, packed=packed).batch(*(tokenise(side) for side in sides))
    found = ours._embed(batch["texts"])

    place = ["dense", "sparse", "colbert"].index(head)
    score = {"q_mask": masks[0]} if head == "colbert" else {}
    scores, expected = (
        getattr(model, f"compute_{head}_score")(queries[place], passages[place], **score)
        for model, (queries, passages) in ((ours, found), (upstream, wanted))
    )
    torch.testing.assert_close(scores, expected)
    check_gradients(gradients(ours, scores.square().sum()), gradients(upstream, expected.square().sum()))


def test_sub_batches_keep_representations_only(root: Path) -> None:
    """What autograd holds of a step does not grow with the activations of the batch."""
    rng = random.Random(3)
    sides = [text(rng, 8) for _ in range(4)], [text(rng, 30) for _ in range(28)]
    _, ours = models(root, unified_finetuning=True)
    tokenise = Tokeniser(ours.tokenizer, 64)

    def held(sub_batch_size: int | None) -> int:
        ours.sub_batch_size = sub_batch_size
        batch = layout_of(ours, sub_batch_size=sub_batch_size).batch(*(tokenise(side) for side in sides))
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            ours._embed(batch["texts"])
        return sum(storages.values())

    assert held(2) < held(None) / 5


def test_representations_have_upstreams_types_in_16_bits(root: Path) -> None:
    """Without autocast, as with DeepSpeed, upstream compares token vectors in float32."""
    upstream, ours = (model.bfloat16() for model in models(root, unified_finetuning=True))
    tokenizer = upstream.tokenizer
    padded = tokenizer(["w1 w2 w3", "w4"], padding=True, return_tensors="pt")
    expected = upstream.encode({name: value for name, value in padded.items() if name != "token_type_ids"})
    tokenise = Tokeniser(tokenizer, 64)
    batch = layout_of(ours).batch(tokenise(["w1 w2 w3"]), tokenise(["w4"]))
    assert [found.dtype for found in ours._embed(batch["texts"])[0]] == [each.dtype for each in expected]


def test_a_tokenizer_without_end_of_sequence_trains(root: Path, tmp_path: Path) -> None:
    values = arguments(root, model_name_or_path=str(root / "bert"), unified_finetuning=True, max_steps=2)
    with trial_process(tmp_path / "log.txt"):
        runner = Runner(build_arguments(values, str(tmp_path / "out")), BaseModels(), [])
        assert runner.model.special_tokens == [0, 1, 2]  # padding, unknown, [CLS]; [SEP] has a weight, as in inference
        assert runner.trainer.train().training_loss > 0


def test_rows_that_another_seed_leaves_out_have_a_cache_of_their_own(root: Path, tmp_path: Path) -> None:
    """Upstream draws which rows to leave out; a token of theirs would be out of the embedding's reach."""
    caches = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        values = arguments(root, max_example_num_per_dataset=4, seed=seed, max_steps=2)
        with trial_process(tmp_path / "log.txt"):
            runner = Runner(build_arguments(values, str(tmp_path / "out")), BaseModels(), [], tmp_path / "tokens")
            assert runner.trainer.train().training_loss > 0
        caches.append(runner.data_collator.passage_tokens.cache._keys.tolist())
    assert caches[0] != caches[1]


def test_empty_negatives_are_refused_with_the_row(root: Path, tmp_path: Path) -> None:
    rows = make_rows(tmp_path / "rows.jsonl", rows=3, negatives=1).read_text().splitlines()
    rows[1] = rows[1][: rows[1].index('"neg"')] + '"neg": []}'
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    values = arguments(root, train_data=str(tmp_path / "rows.jsonl"), cache_path=str(tmp_path / "cache"))
    with trial_process(tmp_path / "log.txt"), pytest.raises(ValueError, match="`neg`, but row 2 has none"):
        Runner(build_arguments(values, str(tmp_path / "out")), BaseModels(), [])


def test_more_rows_than_upstreams_ensemble_loss_can_hold_are_refused(root: Path, tmp_path: Path) -> None:
    make_rows(tmp_path / "a_no_in_batch_neg.jsonl")
    values = arguments(root, train_data=str(tmp_path / "a_no_in_batch_neg.jsonl"), unified_finetuning=True)
    values |= {"same_dataset_within_batch": True, "train_group_size": 2, "per_device_train_batch_size": 4}
    with trial_process(tmp_path / "log.txt"), pytest.raises(ValueError, match="must be at most train_group_size"):
        Runner(build_arguments(values, str(tmp_path / "out")), BaseModels(), [])


@pytest.mark.parametrize("with_heads", [False, True], ids=["new heads", "heads in the checkpoint"])
def test_a_copied_base_model_is_the_one_that_was_read(root: Path, tmp_path: Path, with_heads: bool) -> None:
    folder = make_model(tmp_path / "model")
    if with_heads:
        torch.manual_seed(9)
        torch.save(torch.nn.Linear(16, 16).state_dict(), folder / "colbert_linear.pt")
        torch.save(torch.nn.Linear(16, 1).state_dict(), folder / "sparse_linear.pt")
    base = BaseModels()
    model_arguments = build_arguments(arguments(root, model_name_or_path=str(folder)), "out").model
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        parts = base.model(EncoderOnlyEmbedderM3Runner.get_model, model_arguments)
        found.append(
            ({f"{k}.{n}": v for k, part in parts.items() for n, v in part.state_dict().items()}, torch.rand(1))
        )
    (read, read_draw), (copied, copied_draw) = found
    assert all(torch.equal(value, copied[name]) for name, value in read.items())
    assert torch.equal(read_draw, copied_draw)


@pytest.mark.parametrize(
    ("changes", "checkpointed"),
    [
        ({}, False),
        ({"gradient_checkpointing": True}, True),
        ({"gradient_checkpointing": True, "sub_batch_size": 2}, False),
    ],
    ids=["not asked for", "asked for", "sub-batches are checkpointed whole"],
)
@pytest.mark.parametrize("wanting", [True, False], ids=["memory is wanting", "memory is there"])
def test_layers_are_checkpointed_where_they_may_and_have_to(
    changes: dict[str, Any], checkpointed: bool, wanting: bool, root: Path, tmp_path: Path
) -> None:
    with trial_process(tmp_path / "log.txt"):
        built = build_arguments(arguments(root, max_steps=1, **changes), str(tmp_path / "out"))
        runner = Runner(built, BaseModels(), [])
        runner.model.checkpoint_layers = wanting
        runner.trainer.train()
    layers = runner.model.model.encoder.layer
    assert [layer.gradient_checkpointing for layer in layers] == [checkpointed and wanting] * len(layers)


def test_every_parameter_that_trains_has_a_gradient(root: Path, tmp_path: Path) -> None:
    """So that DistributedDataParallel need not look for those without."""
    with trial_process(tmp_path / "log.txt"):
        values = arguments(root, unified_finetuning=True, max_steps=1)
        runner = Runner(build_arguments(values, str(tmp_path / "out")), BaseModels(), [])
        assert runner.training_args.ddp_find_unused_parameters is False
        batch = next(iter(runner.trainer.get_train_dataloader()))
        runner.model.train()(**batch).loss.backward()
    without = [name for name, value in runner.model.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []
    assert not runner.model.model.pooler.dense.weight.requires_grad


def test_nothing_of_a_frozen_encoder_is_kept(root: Path, tmp_path: Path) -> None:
    """Also where layers may be computed again: upstream has the embeddings require a gradient then."""
    found = []
    for checkpointing in (False, True):
        values = arguments(root, unified_finetuning=True, fix_encoder=True, gradient_checkpointing=checkpointing)
        with trial_process(tmp_path / "log.txt"):
            torch.manual_seed(0)  # of new heads
            runner = Runner(build_arguments(values, str(tmp_path / "out")), BaseModels(), [])
            batch = next(iter(runner.trainer.get_train_dataloader()))
            model = runner.model.train()
            model.gradient_checkpointing_enable()
            outputs: list[bool] = []
            model.model.register_forward_hook(
                lambda _, __, output, seen=outputs: seen.append(output.last_hidden_state.requires_grad)
            )
            torch.manual_seed(1)  # of dropout
            loss = model(**batch).loss
            found.append((loss, gradients(model, loss)))
            assert outputs
            assert not any(outputs)
    (loss, wanted), (again, heads) = found
    assert wanted.keys() == {f"{head}_linear.{part}" for head in ("colbert", "sparse") for part in ("weight", "bias")}
    assert torch.equal(again, loss)
    check_gradients(heads, wanted)


def test_a_state_has_the_draws_of_its_workers_own_device(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream keeps those of all devices that a worker sees, by their number; elsewhere it may have another one."""
    drawn, restored = torch.tensor([1, 2], dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: drawn * device.index)
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: restored.append((state.tolist(), device.index))
    )
    with trial_process(tmp_path / "log.txt"):
        runner = Runner(build_arguments(arguments(root, max_steps=1), str(tmp_path / "out")), BaseModels(), [])
        trainer = runner.trainer
        trainer.train()
        with monkeypatch.context() as on_a_gpu:
            on_a_gpu.setattr(type(runner.training_args), "device", torch.device("cuda", 2))
            trainer.capture_state(tmp_path)
            on_a_gpu.setattr(type(runner.training_args), "device", torch.device("cuda", 0))
            trainer._cuda_draws = torch.load(tmp_path / "position-0.pt", weights_only=True)["cuda"]
            trainer._load_rng_state(str(tmp_path))
            assert restored == [([2, 4], 0)]
            trainer._cuda_draws = None  # an earlier version's state
            trainer._load_rng_state(str(tmp_path))
            assert len(restored) == 1
