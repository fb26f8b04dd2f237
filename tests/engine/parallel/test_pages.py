"""Pages that several ranks hold leave and enter as those of one: the same bytes, whoever holds which head."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from runtime.domain.steps import Exported, Frame, Prefill, Submit
from runtime.engine.core import EngineCore
from runtime.engine.kv_tensors import KVTensors
from runtime.engine.native import spec_of
from runtime.engine.parallel.leader import GroupRunner
from runtime.model.checkpoint import open_checkpoint
from tests.engine.answering import GREEDY, prompt, run, sequence
from tests.engine.parallel.groups import PAGE, GroupCore, group_of, settings_of

PAGES = 6


@pytest.fixture
def group(checkpoint: Callable[[str], Path]) -> Iterator[Callable[[str, int], GroupRunner]]:
    with ExitStack() as stack:

        def build(kind: str, ranks: int) -> GroupRunner:
            built = group_of(checkpoint(kind), ranks, pages=PAGES)
            stack.callback(built.close)
            return built

        yield build


@pytest.mark.parametrize(("kind", "ranks"), [("llama", 2), ("llama", 4), ("llama-linear-mqa", 2)])
def test_what_is_written_is_read_as_one_rank_would_read_it(
    kind: str, ranks: int, group: Callable[[str, int], GroupRunner], checkpoint: Callable[[str], Path]
) -> None:
    pages = group(kind, ranks).kv
    path = checkpoint(kind)
    spec = spec_of(open_checkpoint(path), settings_of(path))
    alone = KVTensors(spec, PAGES)
    source = random.Random(0)
    for page, tokens in ((3, PAGE), (1, 5), (5, PAGE)):
        payload = source.randbytes(spec.token_bytes * tokens)
        pages.write_page(page, payload, tokens)
        alone.write_page(page, payload, tokens)
    wanted = [(1, 5), (3, PAGE), (1, PAGE), (5, 7)]
    assert pages.read_pages(wanted) == alone.read_pages(wanted)


def exported(core: EngineCore) -> list[Frame]:
    core.apply(Submit(sequence("a", prompt(80), GREEDY), Prefill(79, first_page=0)))
    return [event.frame for event in run(core) if isinstance(event, Exported)]


def test_pages_have_the_names_and_the_size_that_one_rank_gives_them(
    shared: GroupCore, engine: Callable[..., EngineCore]
) -> None:
    two, one = exported(shared("llama", pages=PAGES)), exported(engine("llama", pages=40))
    assert [(each.page, each.index, each.valid_tokens) for each in two] == [
        (each.page, each.index, each.valid_tokens) for each in one
    ]
    assert [len(each.payload) for each in two] == [len(each.payload) for each in one]
