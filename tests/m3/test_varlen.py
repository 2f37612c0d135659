"""Attention within texts that lie end to end, and the operators of PyTorch that compute it on a GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import XLMRobertaConfig, XLMRobertaModel

from tests.m3.test_packing import encoder_of
from tests.support.varlen_kernels import kernels_on_cpu
from trainables import varlen
from trainables.varlen import attend, attend_text_by_text, attends_text_by_text, can_pack, kernel_of

CU_SEQLENS = torch.tensor([0, 3, 4, 9], dtype=torch.int32)
LENGTHS = [3, 1, 5]


def projections(**how: Any) -> list[Tensor]:
    """Returns query, key and value as an encoder gives them to attention: (1, 2 heads, 9 tokens, 8)."""
    generator = torch.Generator().manual_seed(0)
    flat = [torch.randn(1, 9, 16, generator=generator).to(**how).requires_grad_() for _ in range(3)]
    return [part.view(1, 9, 2, 8).transpose(1, 2) for part in flat]


def attended(parts: list[Tensor], **more: Any) -> Tensor:
    cu_seqlens = CU_SEQLENS.to(parts[0].device)
    kernel = varlen.kernel_of(parts[0].device, parts[0].dtype, parts[0].shape[-1])
    query, key, value = parts
    given = {"cu_seqlens": cu_seqlens, "longest": 5, "text_lengths": LENGTHS, "kernel": kernel, "scaling": 0.3, **more}
    return attend(torch.nn.Module(), query, key, value, None, **given)[0]


@pytest.mark.parametrize("way", ["flash", "efficient"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_operator_is_called_as_it_is_declared(way: str, dropout: float) -> None:
    """The stand-ins draw the forward pass's dropout as attention text by text does."""
    found = []
    for kernel in (None, way):
        parts = projections(dtype=torch.float64)
        torch.manual_seed(1)
        if kernel is None:
            values = attended(parts, dropout=dropout)
        else:
            with kernels_on_cpu(kernel) as called:
                values = attended(parts, dropout=dropout)
            assert called == [way]
        found.append(values)
    assert found[0].shape == (1, 9, 2, 8)
    assert torch.equal(*found)


@pytest.mark.parametrize("way", ["flash", "efficient"])
def test_an_operator_has_gradients(way: str) -> None:
    found = []
    for kernel in (None, way):
        parts = projections(dtype=torch.float64)
        if kernel is None:
            found.append(torch.autograd.grad(attended(parts).pow(3).sum(), parts))
        else:
            with kernels_on_cpu(kernel):
                found.append(torch.autograd.grad(attended(parts).pow(3).sum(), parts))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(("way", "dtype"), [("flash", torch.bfloat16), ("efficient", torch.float32)])
def test_pytorchs_own_operators_take_these_shapes(
    way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, where an operator computes shapes only; that of `efficient`'s gradients is broken there."""
    monkeypatch.setattr(varlen, "kernel_of", lambda *_: getattr(varlen, way))
    parts = projections(dtype=dtype, device="meta")
    values = attended(parts, dropout=0.1)
    assert values.shape == (1, 9, 2, 8)
    assert values.dtype == dtype
    assert values.requires_grad
    if way == "flash":
        gradients = torch.autograd.grad(values, parts, torch.empty_like(values))
        assert [each.shape for each in gradients] == [part.shape for part in parts]


def test_there_is_no_kernel_off_the_gpu() -> None:
    assert kernel_of(torch.device("cpu"), torch.float32, 8) is None


@pytest.mark.parametrize(
    ("dtype", "size", "modern", "expected"),
    [
        (torch.bfloat16, 64, True, "flash"),
        (torch.float16, 64, True, "flash"),
        (torch.float16, 64, False, "efficient"),
        (torch.bfloat16, 64, False, None),
        (torch.float32, 64, True, "efficient"),
        (torch.float64, 64, True, None),
        (torch.bfloat16, 12, True, None),
        (torch.bfloat16, 264, True, None),
    ],
)
def test_the_kernel_is_that_of_card_precision_and_size(
    dtype: torch.dtype, size: int, modern: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "_is_modern", lambda _: modern)
    found = kernel_of(torch.device("cuda", 0), dtype, size)
    assert found is (expected and getattr(varlen, expected))


def test_an_encoder_that_attends_text_by_text_takes_padded_texts_as_before() -> None:
    encoder = encoder_of("xlm-roberta")
    given = {"input_ids": torch.tensor([[0, 9, 2], [0, 2, 1]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    expected = encoder(**given).last_hidden_state
    attend_text_by_text(encoder)
    torch.testing.assert_close(encoder(**given).last_hidden_state, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("model_type", "changes"), [("modernbert", {}), ("xlm-roberta", {"is_decoder": True})])
def test_other_encoders_stay_padded(model_type: str, changes: dict[str, Any]) -> None:
    assert not can_pack(encoder_of(model_type, **changes))


def test_a_class_made_of_a_known_one_stays_padded() -> None:
    """Remote code keeps the `model_type` of what it is made of; its attention may not take our arguments."""

    class Remote(XLMRobertaModel):
        pass

    config = encoder_of("xlm-roberta").config
    assert isinstance(config, XLMRobertaConfig)
    assert not can_pack(Remote(config))


def test_saved_models_do_not_name_our_attention(tmp_path: Path) -> None:
    encoder = encoder_of("xlm-roberta")
    attend_text_by_text(encoder)
    assert attends_text_by_text(encoder)
    encoder.save_pretrained(tmp_path)
    assert "text_by_text" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
