"""What is handed to the compiler: one static graph for each bucket, and no other ever after."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runtime.domain.steps import Chunk
from runtime.engine.neuron.buckets import Bucket, Buckets
from runtime.engine.neuron.stand_in import OPERATORS, Graph, StandIn
from runtime.errors import EngineFailed, ModelError
from runtime.ids import SequenceId
from tests.engine.neuron.conftest import BUCKETS, PAGE, PAGES, OnStandIn, on_stand_in

KINDS = ("llama", "qwen3")


def plan_numbers(bucket: Bucket) -> int:
    return 3 * bucket.tokens + bucket.past_pages + 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_bucket_has_exactly_one_graph_with_its_own_sizes(kind: str, stand_in: Callable[[str], OnStandIn]) -> None:
    warmed = stand_in(kind)
    assert len(warmed.device.graphs) == len(warmed.buckets)
    for bucket, graph in zip(warmed.buckets, warmed.device.graphs, strict=True):
        assert (plan_numbers(bucket),) in graph.shapes
        assert all(isinstance(size, int) for shape in graph.shapes for size in shape)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_writes_each_layer_s_keys_and_values_once_and_in_place(
    kind: str, stand_in: Callable[[str], OnStandIn]
) -> None:
    warmed = stand_in(kind)
    for graph in warmed.device.graphs:
        assert graph.operators["aten.index_put"] == 2 * warmed.spec.layers
        assert graph.operators["aten.copy_"] == 2 * warmed.spec.layers
        assert graph.operators.keys() <= OPERATORS


def test_only_a_bucket_with_a_past_gathers_pages(stand_in: Callable[[str], OnStandIn]) -> None:
    warmed = stand_in("llama")
    gathers = [graph.operators["aten.index"] for graph in warmed.device.graphs]
    alone = gathers[0]
    assert gathers == [alone if bucket.past_pages == 0 else alone + 2 * warmed.spec.layers for bucket in BUCKETS]


def test_the_progress_names_every_bucket_in_order(stand_in: Callable[[str], OnStandIn]) -> None:
    warmed = stand_in("llama").warmed
    assert [(each.bucket, each.number, each.total) for each in warmed] == [
        (bucket, number, len(BUCKETS)) for number, bucket in enumerate(BUCKETS, 1)
    ]


def test_no_chunk_makes_a_new_graph(stand_in: Callable[[str], OnStandIn]) -> None:
    warmed = stand_in("llama")
    source = random.Random(1)
    for size in (1, 2, 15, 16, 17, 33, 100):
        for start in (0, 1, 8, 31, 32, 33, 60):
            table = tuple(source.sample(range(PAGES), 25))
            tokens = tuple(source.randrange(512) for _ in range(size))
            chunk = Chunk(SequenceId("a"), tokens, start, table, sample=True)
            assert warmed.runner.forward((chunk, replace(chunk, sample=False))).shape == (1, 512)
    assert len(warmed.device.graphs) == len(BUCKETS)


def test_a_bucket_that_was_not_warmed_is_refused_by_name(
    stand_in: Callable[[str], OnStandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed = stand_in("llama")
    more = Buckets((*BUCKETS, Bucket(64, 0)), PAGE)
    monkeypatch.setattr(warmed.runner, "_buckets", more)
    chunk = Chunk(SequenceId("a"), tuple(range(60)), 0, tuple(range(8)), sample=True)
    with pytest.raises(EngineFailed, match=r"bucket 64 tokens \+ 0 pages was not warmed; warmed are: 16 tokens"):
        warmed.runner.forward((chunk,))
    assert len(warmed.device.graphs) == len(BUCKETS)


def test_numbers_that_do_not_fit_a_warmed_graph_fail_and_compile_nothing(
    stand_in: Callable[[str], OnStandIn],
) -> None:
    warmed = stand_in("llama")
    for numbers in (torch.zeros(50, dtype=torch.int32), torch.zeros(plan_numbers(BUCKETS[0]), dtype=torch.int64)):
        with pytest.raises(EngineFailed, match=r"bucket 16 tokens \+ 0 pages does not fit the graph"):
            warmed.runner._launch(BUCKETS[0], numbers)
    assert len(warmed.device.graphs) == len(BUCKETS)


def test_a_model_that_needs_an_unknown_operator_is_refused_with_its_bucket(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.engine.neuron.stand_in.OPERATORS", OPERATORS - {"aten.silu", "aten.rsqrt"})
    with pytest.raises(ModelError, match=r"bucket 4 tokens \+ 1 pages: .* not known to compile: aten.rsqrt, aten.silu"):
        on_stand_in(checkpoint("llama"), (Bucket(4, 1),))


def compiled(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> Graph:
    device = StandIn()
    with torch.no_grad():
        device.compile(function)(*arguments)
    (graph,) = device.graphs
    return graph


def test_the_stand_in_computes_and_writes_in_place() -> None:
    def store(pool: torch.Tensor, slots: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        pool.index_put_((slots,), new)
        return new + new

    pool = torch.zeros(8, 2)
    graph = compiled(store, pool, torch.tensor([1, 3], dtype=torch.int32), torch.ones(2, 2))
    assert (graph.operators["aten.index_put"], graph.operators["aten.copy_"]) == (1, 1)
    assert pool.sum(1).tolist() == [0, 2, 0, 2, 0, 0, 0, 0]


def test_the_stand_in_refuses_wide_indices() -> None:
    with pytest.raises(Exception, match=r"indices of torch.int64: they must be int32"):
        compiled(lambda table, rows: table[rows], torch.zeros(8, 2), torch.tensor([1, 3]))


def test_the_stand_in_refuses_sizes_that_depend_on_content() -> None:
    with pytest.raises(Exception, match=r"not static"):
        compiled(lambda flags: flags.nonzero(), torch.tensor([0, 1, 1], dtype=torch.int32))
