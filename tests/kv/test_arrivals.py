"""Pages between workers that keep them differently: rounded where it is asked for, joined where they come in parts."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import grpc
import pytest
import torch

from batonmesh.v1 import kv_pb2, kv_pb2_grpc
from runtime.domain.landing import CommitArrived, FrameArrived, FrameCorrupt
from runtime.domain.messages import Ticket, TicketPage
from runtime.domain.spec import Kind, LayerGroup, ModelSpec
from runtime.domain.steps import Encoding, Frame
from runtime.ids import BootId, PageId
from runtime.kv.frames import FrameCodec
from runtime.kv.parts import cut_heads
from runtime.kv.transport.paths import Paths, Shm
from tests.kv.test_frames import SPEC
from tests.kv.test_grpc_transport import TRANSFER, Landing, raw_push, side

GROUPS = (LayerGroup((0, 2), 3, 2), LayerGroup((1,), 1, 8, Kind.LATENT))
PAGES = 3


@asynccontextmanager
async def workers(here: ModelSpec, there: ModelSpec, *, shm: bool) -> AsyncIterator[tuple[Paths, Paths]]:
    """One that sends and one that receives, which takes any data type, and 8 bits."""
    async with AsyncExitStack() as stack:
        found = []
        for spec in (here, there):
            grpc_side = await stack.enter_async_context(side(spec, Encoding.INT8, tuple(DTYPES)))
            memory = Shm(grpc_side.transport, 4 * FrameCodec(there).max_bytes) if shm else None
            if memory is not None:
                stack.callback(memory.close)
            found.append(Paths(grpc_side.transport, memory, "told so"))
        yield found[0], found[1]


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ASKED = tuple(TicketPage(index, PageId(index.to_bytes(16)), 8) for index in range(PAGES))
TICKET = Ticket(
    TRANSFER, 1, BootId("boot"), "grpc", "unset:1", SPEC.kv_fingerprint, SPEC.dtype, ASKED, 20_000,
    dtypes=tuple(DTYPES), parts=True,
)  # fmt: skip


def expect(receiver: Paths, landing: Landing, spec: ModelSpec, encoding: Encoding = Encoding.PLAIN) -> Ticket:
    endpoint = receiver.expect(TRANSFER, 1, ASKED, landing)
    return replace(TICKET, endpoint=endpoint, dtype=spec.dtype, offers=receiver.offers, encoding=encoding)


def page(index: int, values: torch.Tensor) -> Frame:
    return Frame(PageId(index.to_bytes(16)), index, 8, values.view(torch.uint8).numpy().tobytes())


async def push(sender: Paths, ticket: Ticket, pages: list[Frame]) -> None:
    async with sender.open(ticket) as pushing:
        for each in pages:
            await pushing.send(each)
        await pushing.commit()


def landed(landing: Landing) -> list[Frame]:
    return [event.frame for event in landing.events if isinstance(event, FrameArrived)]


@pytest.mark.parametrize("shm", [True, False])
@pytest.mark.parametrize(("here", "there"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")])
async def test_values_are_rounded_once_and_travel_in_the_narrower_data_type(here: str, there: str, shm: bool) -> None:
    one, other = replace(SPEC, dtype=here), replace(SPEC, dtype=there)
    source = torch.Generator().manual_seed(0)
    elements = one.page_bytes // DTYPES[here].itemsize
    values = [torch.randn(elements, generator=source).to(DTYPES[here]) for _ in range(PAGES)]
    landing = Landing()
    async with workers(one, other, shm=shm) as (sender, receiver):
        await push(sender, expect(receiver, landing, other), [page(index, each) for index, each in enumerate(values)])
        (path,) = sender.traffic().paths
        assert (path.transport, path.bytes) == ("shm" if shm else "grpc", PAGES * min(one.page_bytes, other.page_bytes))
    assert landed(landing) == [page(index, each.to(DTYPES[there])) for index, each in enumerate(values)]


@pytest.mark.parametrize("encoding", [Encoding.PLAIN, Encoding.INT8])
async def test_pages_of_several_groups_travel_group_by_group_and_land_whole(encoding: Encoding) -> None:
    spec = replace(SPEC, groups=GROUPS)
    # Whole multiples of the scale: nothing is lost when they are rounded to 8 bits.
    pages = [page(index, torch.full((spec.page_bytes // 4,), 127.0 * (index + 1))) for index in range(PAGES)]
    landing = Landing()
    async with workers(spec, spec, shm=False) as (sender, receiver):
        await push(sender, expect(receiver, landing, spec, encoding), pages)
    assert landed(landing) == pages


async def test_heads_that_ranks_of_another_vendor_push_apart_land_as_one_page_and_the_rest_is_missed() -> None:
    content = torch.arange(SPEC.page_bytes // 4, dtype=torch.float32)
    pages = [page(index, content + index) for index in range(2)]
    codec, landing = FrameCodec(SPEC), Landing()
    async with side() as receiver:
        ticket = replace(TICKET, endpoint=receiver.transport.expect(TRANSFER, 1, ASKED, landing))
        parts = [codec.encode(cut_heads(each, SPEC, heads)) for each in pages for heads in (range(1), range(1, 3))]
        damaged = bytearray(parts[3])
        damaged[-1] ^= 1
        async with raw_push(ticket) as call:
            for frames, corrupt in ((parts[2:3], 0), (parts[:2], 0), ([bytes(damaged)], 1)):
                await call.write(kv_pb2.PushRequest(transfer=TRANSFER, epoch=1, frames=frames))
                answer = await call.read()
                assert answer.corrupt == corrupt
            commit = kv_pb2.CommitRequest(transfer=TRANSFER, epoch=1, frames=4)
            async with grpc.aio.insecure_channel(ticket.endpoint) as channel:
                await kv_pb2_grpc.KvStub(channel).Commit(commit, timeout=10)
    assert [type(event) for event in landing.events] == [FrameArrived, FrameCorrupt, CommitArrived]
    assert landed(landing) == pages[:1]
