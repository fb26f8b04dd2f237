"""The receiving ends that transports are timed against: `python -m runtime.kv.transport.timing.receiver JSON`.

Ours as a worker has them, and beside them a raw socket and raw bytes over grpc.aio. What arrives is dropped.
"""

import asyncio
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict
from typing import Any

import grpc
import uvloop

from runtime.domain.landing import LandingEvent
from runtime.errors import Unavailable
from runtime.ids import TransferId
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.arrivals import OpenTransfers
from runtime.kv.transport.nixl.ends import NixlPlan, running_nixl
from runtime.kv.transport.receiving import KvService
from runtime.kv.transport.shm.receiving import ShmReceiver
from runtime.kv.transport.timing.bare_nixl import BACKEND, BareTarget
from runtime.kv.transport.timing.plan import NIXL_AGENT, RAW_METHOD, Listening, RawTarget, Unverified, spec_of

TRANSFERS = 200
_STAGING_BYTES = 64 << 20
_HOST = "127.0.0.1"
_CHUNK = 1 << 20


def transfer_name(path: str, number: int) -> str:
    return f"{path}-{number}"


class _Everything(OpenTransfers):
    """Transfers by number that are open from the start, so that timing them needs no tickets."""

    def __init__(self, codec: FrameCodec, path: str, pages: int) -> None:
        super().__init__(codec)
        for number in range(TRANSFERS):
            self.open(TransferId(transfer_name(path, number)), 1, pages, _drop)


def _drop(_event: LandingEvent) -> None:
    pass


@contextmanager
def _memory(codec: FrameCodec, name: str, pages: int) -> Iterator[str]:
    endpoint = f"baton-timing-{secrets.token_hex(8)}"
    receiver = ShmReceiver(codec, _Everything(codec, name, pages), endpoint, _STAGING_BYTES)
    try:
        yield endpoint
    finally:
        receiver.close()


async def _raw(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    while isinstance(await context.read(), bytes):
        pass
    await context.write(b"all")


def _grpc(codec: FrameCodec, pages: int) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)))
    KvService(_Everything(codec, "grpc", pages)).add_to(server)
    service, method = RAW_METHOD[1:].split("/")
    handler = grpc.stream_stream_rpc_method_handler(_raw)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port(f"{_HOST}:0")
    return server, f"{_HOST}:{port}"


@asynccontextmanager
async def _nixl(
    codec: FrameCodec, pages: int, server: grpc.aio.Server, address: str
) -> AsyncIterator[RawTarget | None]:
    """Where NIXL's own loop may write to, and beside it our service; None where there is no NIXL."""
    plan = NixlPlan(NIXL_AGENT, BACKEND, _STAGING_BYTES)
    async with AsyncExitStack() as stack:
        try:
            running = running_nixl(codec, _Everything(codec, "nixl", pages), address, _nobody, _nobody, plan)
            nixl = await stack.enter_async_context(running)
            bare = BareTarget(codec.spec.page_bytes)
        except Unavailable:
            yield None
        else:
            stack.callback(bare.close)
            nixl.service.add_to(server)
            yield bare.described()


def _nobody(address: str) -> grpc.aio.Channel:
    """The timed sender serves nothing."""
    return grpc.aio.insecure_channel(address)


def _drain(listener: socket.socket) -> None:
    """Each connection says how many bytes it is going to send, gets a byte back after them, and may say so again."""
    buffer = bytearray(_CHUNK)
    while True:
        connection, _ = listener.accept()
        with connection:
            while size := int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "little"):
                while size > 0:
                    size -= connection.recv_into(buffer, min(size, _CHUNK))
                connection.sendall(b"!")


async def _serve(page_bytes: int, pages: int) -> None:
    spec = spec_of(page_bytes)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, stopped.set)
    listener = socket.create_server((_HOST, 0))
    threading.Thread(target=_drain, args=(listener,), daemon=True).start()
    server, address = _grpc(FrameCodec(spec), pages)
    verified, unverified = FrameCodec(spec), Unverified(spec)
    async with AsyncExitStack() as stack:
        shm = stack.enter_context(_memory(verified, "shm", pages))
        quick = stack.enter_context(_memory(unverified, "shm_unverified", pages))
        bare = await stack.enter_async_context(_nixl(verified, pages, server, address))
        await server.start()
        here = Listening(os.getpid(), listener.getsockname()[1], address, shm, quick, bare)
        sys.stdout.write(json.dumps(asdict(here)) + "\n")
        sys.stdout.flush()
        await stopped.wait()
        await server.stop(None)


def main() -> None:
    uvloop.run(_serve(**json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
