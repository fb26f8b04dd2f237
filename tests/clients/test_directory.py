"""The controller as workers and gateways see it, also while it is gone."""

import asyncio

import pytest

from runtime.clients.channels import Channels
from runtime.clients.directory import GrpcDirectory
from runtime.clock import LoopClock
from runtime.domain.messages import View, Worker
from runtime.domain.routing import DECODE
from runtime.errors import Incompatible, Unavailable
from runtime.ids import BootId, WorkerId
from runtime.roles.controller import ControllerRole
from runtime.services.mesh import RegistryService
from runtime.services.server import GrpcServer

LOCAL = "127.0.0.1"


def worker(name: str, fingerprint: str = "0f" * 16) -> Worker:
    return Worker(
        WorkerId(name), BootId("boot-1"), DECODE, "somewhere:1", "m", fingerprint, "0f" * 16, 100, 8, "cpu x1"
    )


def controller(incarnation: int, port: int = 0) -> GrpcServer:
    server = GrpcServer(LOCAL, port)
    server.add(RegistryService(ControllerRole(incarnation, 30.0, LoopClock())))
    return server


async def test_workers_register_renew_and_leave() -> None:
    async with controller(1) as server, Channels() as channels:
        directory = GrpcDirectory(channels, f"{LOCAL}:{server.port}", LoopClock())
        views = aiter(directory.views())
        assert await anext(views) == View(1, 0)
        await directory.register(worker("decode-0"))
        assert await anext(views) == View(1, 1, (worker("decode-0"),))
        with pytest.raises(Incompatible) as refused:
            await directory.register(worker("decode-1", fingerprint="ab" * 16))
        assert refused.value.field == "kv_fingerprint"
        assert [each.field for each in (await anext(views)).refused] == ["kv_fingerprint"]
        await directory.leave(WorkerId("decode-0"), BootId("boot-1"))
        assert (await anext(views)).workers == ()


async def test_views_outlive_a_controller_and_go_on_with_the_next(caplog: pytest.LogCaptureFixture) -> None:
    async with Channels() as channels:
        async with controller(1) as first:
            directory = GrpcDirectory(channels, f"{LOCAL}:{first.port}", LoopClock())
            views = aiter(directory.views())
            assert (await anext(views)).incarnation == 1
        with pytest.raises(Unavailable):
            await directory.register(worker("decode-0"))
        async with controller(2, first.port), asyncio.timeout(10):
            assert (await anext(views)).incarnation == 2
    assert any("the controller is lost" in record.message for record in caplog.records)
