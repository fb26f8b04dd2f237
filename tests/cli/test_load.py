"""The load generator counts what was really answered, over both protocols."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from runtime.cli.bench.load.closed import Plan, run
from runtime.cli.bench.load.http import HttpCaller
from runtime.errors import BatonError, InvalidArgument, Unavailable
from runtime.mesh.listening import free_ports
from tests.cli.conftest import Served

TOKENS = 4
# Of a chat stream: the opening with the role, the closing with the reason, [DONE]; of a gRPC stream: the final.
AROUND = {"http": 3, "grpc": 1}


def plan(protocol: str, target: str, clients: int = 3, model: str = "simulated") -> Plan:
    return Plan(protocol, target, model, clients, TOKENS, warmup_s=0.1, seconds=1.0)


@asynccontextmanager
async def server(answer: bytes) -> AsyncIterator[str]:
    """Says the same to every request, whatever it is, and hangs up."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(reply, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_every_token_of_every_request_is_an_event(served: Served, protocol: str) -> None:
    measured = await run(plan(protocol, getattr(served.mesh, protocol)))
    assert measured.failures == 0
    assert measured.requests > 3
    assert measured.events == measured.requests * (TOKENS + AROUND[protocol])
    assert 0 < measured.first_ms_p50 <= measured.first_ms_p99
    assert measured.first_ms_p50 < measured.whole_ms_p50


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_refused_requests_are_failures_and_say_why(served: Served, protocol: str) -> None:
    measured = await run(plan(protocol, getattr(served.mesh, protocol), clients=1, model="other"))
    assert measured.requests == 0
    assert measured.failures > 1
    assert "'other' is not served here" in measured.failure


async def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(Unavailable, match="nobody answers at"):
        await run(plan("http", f"http://127.0.0.1:{free_ports(1)[0]}"))


async def test_a_target_that_is_no_url_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="target must look like http://host:port"):
        await HttpCaller.connect("https://example.org", "m", 1)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\ndata: [DONE]\n\n", "an unfinished stream"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n"content":"a"\n\n', "an unfinished stream"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ndata: ", "the connection broke"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy", "HTTP 503: busy"),
        (b"SMTP ready\r\n", "not HTTP"),
    ],
)
async def test_an_answer_that_is_not_whole_is_a_failure(answer: bytes, complaint: str) -> None:
    async with server(answer) as url:
        caller = await HttpCaller.connect(url, "m", 1)
        with pytest.raises(BatonError, match=complaint):
            await caller.call("Hello.")
        await caller.close()
