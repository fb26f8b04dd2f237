"""Calls to other workers: what a dead, a silent and a cancelled one look like from here."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from runtime.clients.channels import Channels
from runtime.clients.peers import GrpcPeers
from runtime.domain.messages import Acknowledge, PrefillCall, StepBatch, Ticket, TicketPage
from runtime.domain.sequence import Ref
from runtime.engine.simulated import StepProfile
from runtime.errors import DeadlineExceeded, Incompatible, InvalidArgument, Unavailable
from runtime.ids import BootId, GatewayId, PageId, TenantId, TransferId, TurnId
from runtime.roles.decode import DecodeRole
from tests.services.grpc_mesh import SPEC, TENANT, GrpcMesh, grpc_mesh

NOBODY = "127.0.0.1:1"
TICKET = Ticket(
    TransferId("xfer-1"), 1, BootId("boot-1"), "grpc", NOBODY, SPEC.kv_fingerprint, SPEC.dtype,
    (TicketPage(0, PageId(bytes(16)), 8),), 5_000,
)  # fmt: skip
CALL = PrefillCall(TENANT, tuple(range(65, 75)), TICKET)


@pytest.fixture
async def peers() -> AsyncIterator[GrpcPeers]:
    async with Channels() as channels:
        yield GrpcPeers(channels, GatewayId("gw-test"))


@pytest.fixture
async def mesh() -> AsyncIterator[GrpcMesh]:
    async with grpc_mesh() as running:
        yield running


@contextmanager
def silent_listener() -> Iterator[str]:
    """Something that takes connections and says nothing; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


async def test_a_dead_prefill_worker_is_unavailable_promptly(peers: GrpcPeers) -> None:
    async with asyncio.timeout(3):
        with pytest.raises(Unavailable):
            await peers.prefill(NOBODY).prefill(CALL)


async def test_a_silent_prefill_worker_is_given_up_at_the_deadline_of_the_ticket(peers: GrpcPeers) -> None:
    hurried = replace(CALL, ticket=replace(TICKET, remaining_ms=200))
    with silent_listener() as address, pytest.raises(DeadlineExceeded):
        async with asyncio.timeout(3):
            await peers.prefill(address).prefill(hurried)


async def test_a_refusal_keeps_its_kind_and_its_field(peers: GrpcPeers, mesh: GrpcMesh) -> None:
    prefill = peers.prefill(mesh.workers["prefill-0"].worker.address)
    with pytest.raises(Incompatible) as other_model:
        await prefill.prefill(replace(CALL, ticket=replace(TICKET, fingerprint="ab" * 16)))
    assert other_model.value.field == "ticket.fingerprint"
    with pytest.raises(InvalidArgument) as stranger:
        await prefill.prefill(replace(CALL, tenant=TenantId("stranger")))
    assert stranger.value.field == "tenant"


async def test_cancelling_a_prefill_cancels_it_there() -> None:
    async with grpc_mesh(profile=StepProfile(base_ms=30_000)) as mesh, Channels() as channels:
        worker = mesh.workers["prefill-0"]
        prefill = GrpcPeers(channels, GatewayId("gw-test")).prefill(worker.worker.address)
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(prefill.prefill(CALL))
            async with asyncio.timeout(5):
                while not worker.role.running():  # noqa: ASYNC110
                    await asyncio.sleep(0)  # the worker tells nobody that it began
            asking.cancel()
        async with asyncio.timeout(5):
            while worker.role.running():  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_a_dead_decode_worker_is_unavailable_promptly(peers: GrpcPeers) -> None:
    async with asyncio.timeout(3), peers.decode(NOBODY).attach() as stream:
        with pytest.raises(Unavailable):
            await anext(aiter(stream.batches()))
        with pytest.raises(Unavailable):
            await stream.send(Acknowledge(Ref(TurnId("turn-1"), 1, 1)))


async def test_entering_a_stream_to_a_silent_worker_does_not_wait_and_leaving_it_ends_it(peers: GrpcPeers) -> None:
    with silent_listener() as address:
        async with asyncio.timeout(3), peers.decode(address).attach() as stream:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await anext(aiter(stream.batches()))


async def test_leaving_a_stream_ends_it_at_the_worker(peers: GrpcPeers, mesh: GrpcMesh) -> None:
    worker = mesh.workers["decode-0"]
    assert isinstance(worker.role, DecodeRole)
    links = len(worker.role._links)
    async with peers.decode(worker.worker.address).attach() as stream:
        await anext(aiter(stream.batches()))
        assert len(worker.role._links) == links + 1
    async with asyncio.timeout(5):
        while len(worker.role._links) > links:  # noqa: ASYNC110
            await asyncio.sleep(0)  # the worker tells nobody that it lost a stream


async def test_a_worker_that_dies_breaks_the_stream_at_once(peers: GrpcPeers, mesh: GrpcMesh) -> None:
    worker = mesh.workers["decode-0"]
    async with peers.decode(worker.worker.address).attach() as stream:
        batches = aiter(stream.batches())
        await anext(batches)
        await worker.kill()
        async with asyncio.timeout(0.9):  # less than a heartbeat
            with pytest.raises(Unavailable):
                await exhaust(batches)


async def exhaust(batches: AsyncIterator[StepBatch]) -> None:
    async for _ in batches:
        pass
