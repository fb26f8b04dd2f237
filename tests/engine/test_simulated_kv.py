"""The simulated engine's values as pages of any size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.simulated_kv import KvShape, payloads_of

SHAPES = (KvShape(), KvShape(3, 2, 4, "bfloat16"), KvShape(1, 1, 2, "bfloat16"), KvShape(4, 3, 5, "float32"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9))
def test_values_come_back_out_of_pages_as_large_as_their_shape_says(shape: KvShape, values: list[int]) -> None:
    payloads = payloads_of(shape)
    payload = payloads.of(values, shape.layers)
    assert len(payload) == shape.layers * 2 * len(values) * shape.row_bytes
    assert payloads.values(memoryview(payload), len(values)) == values
    assert payloads.of(values, 1) * shape.layers == payload


def test_layers_that_do_not_agree_give_another_value_for_their_token() -> None:
    shape = SHAPES[1]
    payloads, values = payloads_of(shape), [7, 8, 9]
    payload = bytearray(payloads.of(values, shape.layers))
    one_layer = len(payload) // shape.layers
    payload[one_layer : 2 * one_layer] = payloads.of([7, 1, 9], 1)
    first, second, third = payloads.values(bytes(payload), 3)
    assert (first, third) == (7, 9)
    assert second != 8
