"""Channels are shared by address, pages have connections of their own, and the pool is bounded."""

import asyncio

import grpc
import pytest

from runtime.clients import channels as channels_module
from runtime.clients.channels import Channels
from runtime.domain.identity import Role
from runtime.domain.messages import View
from runtime.services.mesh import MeshService
from runtime.services.server import GrpcServer
from tests.services.grpc_mesh import nobody_drains
from tests.services.test_server import topology


async def test_an_address_has_one_channel_for_messages_and_one_for_each_lane_of_pages() -> None:
    async with Channels() as channels:
        assert channels.to("a:1", Role.DECODE) is channels.to("a:1", Role.DECODE)
        assert channels.bulk("a:1", Role.DECODE, 0) is channels.bulk("a:1", Role.DECODE, 0)
        assert channels.bulk("a:1", Role.DECODE, 0) is not channels.bulk("a:1", Role.DECODE, 1)
        assert channels.to("a:1", Role.DECODE) is not channels.bulk("a:1", Role.DECODE, 0)
        assert channels.to("a:1", Role.DECODE) is not channels.to("b:1", Role.DECODE)


async def test_the_least_recently_used_channel_falls_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels_module, "_KEPT", 2)
    async with Channels() as channels:
        first, second = channels.to("a:1", Role.DECODE), channels.to("b:1", Role.DECODE)
        assert channels.to("a:1", Role.DECODE) is first
        channels.to("c:1", Role.DECODE)
        assert len(channels) == 2
        assert channels.to("a:1", Role.DECODE) is first
        assert channels.to("b:1", Role.DECODE) is not second


async def test_leaving_the_pool_ends_the_calls_on_its_channels() -> None:
    server = GrpcServer("127.0.0.1", 0)
    server.add(MeshService(lambda: View(1, 1), nobody_drains))
    async with server:
        async with Channels() as channels:
            channel = channels.to(f"127.0.0.1:{server.port}", Role.DECODE)
            assert (await topology(channel)).view.version == 1
        with pytest.raises((grpc.aio.UsageError, asyncio.CancelledError)):
            await topology(channel)
