"""Packed layers compute what they were made of, in every form that they choose between."""

import sys

import pytest
import torch
from torch import nn

from runtime.engine import packing
from runtime.engine.packing import PackedLinear, ProductPart, SharedProduct, pack_linears

ROWS = (1, 2, 32, 33, 200)


def linear(dtype: torch.dtype, *, bias: bool) -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(96, 40, bias=bias).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("widened", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@torch.inference_mode()
def test_a_packed_layer_gives_the_same_for_any_number_of_rows(
    dtype: torch.dtype, tolerance: float, widened: bool, bias: bool
) -> None:
    plain = linear(dtype, bias=bias)
    packed = PackedLinear(plain, widened=widened)
    for rows in ROWS:
        inputs = torch.randn(2, rows, 96).to(dtype)
        output = packed(inputs)
        assert (output.shape, output.dtype) == ((2, rows, 40), dtype)
        torch.testing.assert_close(output, plain(inputs), atol=tolerance, rtol=tolerance)


@torch.inference_mode()
def test_many_rows_of_a_widened_layer_are_multiplied_in_float32() -> None:
    plain = linear(torch.bfloat16, bias=False)
    inputs = torch.randn(packing._FEW_ROWS + 1, 96).to(torch.bfloat16)
    exact = (inputs.double() @ plain.weight.double().T).to(torch.bfloat16)
    assert torch.equal(PackedLinear(plain, widened=True)(inputs), exact)


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_layers_of_one_product_are_what_each_would_be_in_any_order_of_calls_and_for_any_inputs(bias: bool) -> None:
    torch.manual_seed(6)
    plain = [nn.Linear(96, size, bias=bias).requires_grad_(False) for size in (40, 8, 24)]
    product = SharedProduct(PackedLinear(*plain, widened=False), [40, 8, 24])
    parts = [ProductPart(product, member) for member in range(3)]
    one, other = torch.randn(2, 5, 96), torch.randn(1, 96)
    for member, inputs in ((0, one), (1, one), (2, one), (2, one), (0, other), (1, one), (1, other), (1, other)):
        torch.testing.assert_close(parts[member](inputs), plain[member](inputs), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_product_is_computed_once_and_keeps_no_activations() -> None:
    plain = linear(torch.float32, bias=False)
    product = SharedProduct(PackedLinear(plain, plain, widened=False), [40, 40])
    inputs = torch.randn(3, 96)
    first, second = (product.part(member, inputs) for member in (0, 1))
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    held = sys.getrefcount(inputs)
    product.part(0, inputs)
    product.part(1, inputs)
    assert sys.getrefcount(inputs) == held
    assert not product._parts


class Attending(nn.Module):
    """What transformers call the layers of an attention module, one of them with another bias or input."""

    def __init__(self, *, odd: str | None) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(8, 8), nn.Linear(8, 4)
        self.v_proj = {None: nn.Linear(8, 4), "bias": nn.Linear(8, 4, bias=False), "size": nn.Linear(6, 4)}[odd]


@pytest.mark.parametrize(("odd", "kind"), [(None, ProductPart), ("bias", PackedLinear), ("size", PackedLinear)])
def test_only_layers_that_are_alike_are_multiplied_together(odd: str | None, kind: type[nn.Module]) -> None:
    model = nn.Sequential(Attending(odd=odd)).requires_grad_(False)
    pack_linears(model, free=1 << 30)
    assert [type(each) for each in model[0].children()] == [kind] * 3


def test_every_plain_linear_layer_is_replaced_and_nothing_else() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), Special(4, 4), nn.Linear(4, 2))
    pack_linears(model.requires_grad_(False), free=1 << 30)
    kinds = [type(each) for each in model.modules() if not isinstance(each, nn.Sequential)]
    assert kinds == [PackedLinear, nn.ReLU, Special, PackedLinear]


@pytest.mark.parametrize(
    ("dtype", "amx", "free", "widens"),
    [
        (torch.bfloat16, False, 1 << 30, True),
        (torch.bfloat16, False, 1 << 10, False),
        (torch.bfloat16, True, 1 << 30, False),
        (torch.float32, False, 1 << 30, False),
    ],
)
def test_copies_in_float32_are_made_where_they_pay_and_fit(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, amx: bool, free: int, widens: bool
) -> None:
    monkeypatch.setattr(packing, "multiplies_bfloat16_fast", lambda: amx)
    assert packing._widens(linear(dtype, bias=False), free) is widens
