"""What each kernel computes is what torch does, of every shape that makes it go another way."""

import math

import pytest
import torch
from torch.nn.functional import gelu, linear, rms_norm, silu

from runtime.engine.kernels.library import Kernels, Rows, TiledWeights, kernels

BOTH = [torch.float32, torch.bfloat16]
NEAR = {torch.float32: (2e-6, 2e-5), torch.bfloat16: (1e-2, 1.6e-2)}


@pytest.fixture
def own() -> Kernels:
    found = kernels()
    if found is None:
        pytest.skip("this machine has no C compiler")
    return found


def assert_near(told: torch.Tensor, expected: torch.Tensor) -> None:
    atol, rtol = NEAR[told.dtype]
    torch.testing.assert_close(told, expected, atol=atol, rtol=rtol)


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("rows", [*range(1, 14), 16, 24, 25, 33, 200])
@pytest.mark.parametrize(("depth", "width"), [(256, 64), (1, 1), (37, 33), (300, 40), (513, 95)])
def test_a_product_is_the_exact_one_rounded_once(own: Kernels, rows: int, depth: int, width: int) -> None:
    inputs, weight = numbers(rows, depth, dtype=torch.bfloat16), numbers(width, depth, dtype=torch.bfloat16, seed=1)
    bias = numbers(width, seed=2)
    for added in (None, bias):
        tiled = TiledWeights.of(weight, added)
        exact = linear(inputs.double(), weight.double(), None if added is None else added.double())
        torch.testing.assert_close(own.product(inputs, tiled).double(), exact, atol=1e-4, rtol=2**-8)


def test_a_product_of_what_is_no_number_is_none(own: Kernels) -> None:
    inputs, weight = numbers(2, 64, dtype=torch.bfloat16), numbers(32, 64, dtype=torch.bfloat16)
    inputs[1, 5] = math.nan
    told = own.product(inputs, TiledWeights.of(weight, None))
    assert not told[0].isnan().any()
    assert told[1].isnan().all()


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("shape", [(1, 3, 64), (5, 7), (1, 200, 1024)])
def test_a_norm_is_over_the_last_dimension(own: Kernels, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    inputs, weights = numbers(*shape, dtype=dtype), numbers(shape[-1], seed=1)
    expected = rms_norm(inputs.float(), shape[-1:], weights, 1e-5).to(dtype)
    assert_near(own.norm(inputs, weights, 1e-5), expected)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("shape", [(1, 3, 128), (5, 14), (1, 100, 2048)])
def test_a_gate_is_what_its_activation_lets_through(own: Kernels, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    inputs = 4 * numbers(*shape, dtype=dtype)
    gate, up = inputs.float().chunk(2, -1)
    assert_near(own.gate(inputs, smooth=False), (silu(gate) * up).to(dtype))
    expected = (gelu(gate, approximate="tanh") * up).to(dtype)
    assert_near(own.gate(inputs, smooth=True), expected)


@pytest.mark.parametrize("extreme", [200.0, 90.0, -90.0, -200.0, 0.0])
def test_a_gate_far_from_zero_is_all_or_nothing(own: Kernels, extreme: float) -> None:
    inputs = torch.tensor([[extreme, 2.0]])
    torch.testing.assert_close(own.gate(inputs, smooth=False), torch.tensor([[2 * max(extreme, 0.0)]]))


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("dim", [8, 16, 64, 128])
def test_heads_are_turned_wherever_they_lie(own: Kernels, dtype: torch.dtype, dim: int) -> None:
    tokens, heads = 5, 3
    lying = numbers(tokens, heads * dim + 24, dtype=dtype)[:, 8 : 8 + heads * dim].view(tokens, heads, dim)
    cosines, sines = numbers(tokens, dim, dtype=dtype, seed=1), numbers(tokens, dim, dtype=dtype, seed=2)
    first, second = lying.float().chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    expected = (lying.float() * cosines.float()[:, None] + turned * sines.float()[:, None]).to(dtype)
    for heads_first in (lying, lying.transpose(0, 1).contiguous().transpose(0, 1)):
        assert_near(own.rotate(heads_first, cosines, sines), expected)


PAGE, POOL = 8, 40
LENGTHS = (1, 7, 8, 9, 33, 40, 17)


def attended(
    queries: torch.Tensor,
    pages: tuple[torch.Tensor, torch.Tensor],
    tables: torch.Tensor,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """By the definition, in float64."""
    rows = []
    for query, table, length in zip(queries.double(), tables, LENGTHS, strict=True):
        seen = slice(0 if window is None else max(0, length - window), length)
        keys, values = (each[table].flatten(0, 1)[seen].double().transpose(0, 1) for each in pages)
        groups = len(query) // len(keys)
        keys, values = keys.repeat_interleave(groups, 0), values.repeat_interleave(groups, 0)
        scores = (keys @ query[:, :, None])[..., 0] * 0.3
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        rows.append((torch.softmax(scores, -1)[:, None] @ values)[:, 0])
    return torch.stack(rows)


ALONE = ([0, 1, 2, 3, 4, 5, 6], [(row, 1, 0) for row in range(7)])
# Rows 4 and 5 begin with the same three pages, and the last of all runs with two rows has less than it shares.
TOGETHER = ([6, 4, 5, 1, 0, 2, 3], [(0, 1, 0), (1, 2, 3), (3, 1, 0), (4, 3, 2)])


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("dim", [16, 64, 80, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (7, 1)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (10, None), (1, 5.0), (None, 2.0)])
@pytest.mark.parametrize("order", [ALONE, TOGETHER], ids=["alone", "together"])
def test_attention_is_what_it_is_by_definition(
    own: Kernels,
    dtype: torch.dtype,
    dim: int,
    heads: int,
    kv_heads: int,
    window: int | None,
    softcap: float | None,
    order: tuple[list[int], list[tuple[int, int, int]]],
) -> None:
    pages = (numbers(POOL, PAGE, kv_heads, dim, dtype=dtype), numbers(POOL, PAGE, kv_heads, dim, dtype=dtype, seed=1))
    queries = numbers(len(LENGTHS), heads, dim, dtype=dtype, seed=2)
    tables = torch.randperm(35, generator=torch.Generator().manual_seed(3)).view(7, 5)
    tables[5, :3] = tables[4, :3]
    tables[2, :2] = tables[3, :2] = tables[0, :2]
    members, runs = (torch.tensor(each) for each in order)
    rows = Rows(tables.flatten(), torch.tensor(LENGTHS), members, runs)
    told = own.attend(queries, pages, rows, 0.3, window, softcap)
    expected = attended(queries, pages, tables, window, softcap)
    torch.testing.assert_close(told.double(), expected, atol=2e-6 if dtype is torch.float32 else 2e-2, rtol=1e-2)


def test_what_lies_behind_the_end_of_a_sequence_reaches_nobody(own: Kernels) -> None:
    pages = (torch.full((2, PAGE, 1, 16), math.nan), torch.full((2, PAGE, 1, 16), math.nan))
    for each in pages:
        each[1, :3] = 1.0
    rows = Rows(torch.tensor([1, 0]), torch.tensor([3]), torch.tensor([0]), torch.tensor([[0, 1, 0]]))
    told = own.attend(torch.ones(1, 2, 16), pages, rows, 1.0, None, None)
    torch.testing.assert_close(told, torch.ones(1, 2, 16))
