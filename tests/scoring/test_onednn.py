import pytest
import torch
from torch import nn

from trainables import linear as onednn
from trainables.linear import fast_linear


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the CPU is."""
    monkeypatch.setattr(onednn, "is_faster", lambda: True)


def test_where_it_is_not_faster_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "is_faster", lambda: False)
    layer = nn.Linear(4, 2)
    with fast_linear(layer):
        assert type(layer) is nn.Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 24)])
def test_outputs_and_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 16, bias=bias), torch.randn(shape, requires_grad=True)
    tensors = [x, *layer.parameters()]
    expected = layer(x)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), tensors)
    with fast_linear(layer):
        found = layer(x)
    assert found.grad_fn.name().startswith("_Linear")  # it did go to oneDNN
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), tensors), gradients)


def test_other_precisions_stay_with_torch() -> None:
    layer, x = nn.Linear(4, 2).double(), torch.ones(1, 4, dtype=torch.double)
    with fast_linear(layer):
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_autocast_stays_with_torch() -> None:
    layer, x = nn.Linear(4, 2), torch.ones(1, 4)
    with fast_linear(layer), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_a_frozen_layer_gets_no_gradient() -> None:
    layer, x = nn.Linear(4, 2).requires_grad_(False), torch.ones(1, 4, requires_grad=True)
    with fast_linear(layer):
        layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    assert torch.equal(x.grad, layer.weight.sum(0, keepdim=True))


def test_without_rows_gradients_are_0() -> None:
    """As the sparse head has none where no token of a sub-batch stands in a query."""
    layer, x = nn.Linear(24, 1), torch.empty(0, 24, requires_grad=True)
    with fast_linear(layer):
        layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, torch.zeros(1, 24))
