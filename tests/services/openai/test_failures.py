"""When a turn fails, or its client goes away: what the client is told, and that the turn is left."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import httpx
import openai
import pytest

from runtime.domain.generation import Delta
from runtime.domain.sequence import FinishReason, Sampled
from runtime.engine.simulated import StepProfile
from runtime.errors import BatonError, EngineFailed, ResourceExhausted, Unavailable
from runtime.services.openai.app import openai_app
from runtime.services.openai.settings import OpenAiSettings
from tests.services.openai.one_worker import MODEL, one_worker
from tests.services.openai.scripted import ScriptedGateway
from tests.services.openai.serving import serving

ASK = {"model": MODEL, "prompt": "hello", "max_tokens": 100}
STREAM = ASK | {"stream": True}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": True}
FIRST = Delta(0, (Sampled(300),), " one")
LAST = Delta(1, (Sampled(301),), " two", FinishReason.STOP)


@pytest.mark.parametrize("ask", [ASK, STREAM])
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Unavailable("no decode worker serves now", retry_after_ms=1500), 503, "server_error"),
        (ResourceExhausted("too many requests", retry_after_ms=1500), 429, "rate_limit_error"),
    ],
)
async def test_a_turn_that_never_began_is_refused_with_a_status_and_when_to_come_again(
    ask: dict[str, object], error: BatonError, status: int, kind: str
) -> None:
    gateway = ScriptedGateway([error])
    async with serving(gateway.role) as api:
        refused = await api.http.post("/v1/completions", json=ask)
    assert refused.status_code == status
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("2", "1500")
    assert "x-should-retry" not in refused.headers
    assert refused.json()["error"]["type"] == kind
    assert refused.json()["error"]["message"] == error.message


async def test_a_stream_that_breaks_ends_with_an_error_event_and_neither_done_nor_finish() -> None:
    gateway = ScriptedGateway([FIRST])
    async with serving(gateway.role) as api, api.http.stream("POST", "/v1/chat/completions", json=CHAT) as response:
        lines = response.aiter_lines()
        events = [await anext(lines) for _ in range(4)]
        gateway.turn.put_nowait(EngineFailed("the engine died"))
        events += [line async for line in lines]
    *good, broken = [json.loads(line.removeprefix("data: ")) for line in events if line]
    assert [chunk["choices"][0]["delta"].get("content") for chunk in good] == ["", " one"]
    assert {chunk["choices"][0]["finish_reason"] for chunk in good} == {None}
    assert broken == {"error": {"message": "the engine died", "type": "server_error", "param": None, "code": "engine"}}


async def test_the_client_library_raises_when_a_stream_breaks() -> None:
    gateway = ScriptedGateway([FIRST])
    async with serving(gateway.role) as api:
        stream = await api.client.completions.create(model=MODEL, prompt="hello", stream=True)
        assert (await anext(stream)).choices[0].text == " one"
        gateway.turn.put_nowait(EngineFailed("the engine died"))
        with pytest.raises(openai.APIError, match="the engine died"):
            await anext(stream)


async def test_what_is_ready_together_leaves_in_one_write_and_an_event_each() -> None:
    gateway = ScriptedGateway([FIRST, LAST])
    sent: list[MutableMapping[str, Any]] = []
    asked = asyncio.Queue[MutableMapping[str, Any]]()
    asked.put_nowait({"type": "http.request", "body": json.dumps(STREAM).encode()})

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    await openai_app(gateway.role, OpenAiSettings())(scope, asked.get, send)
    start, body = sent
    assert start["status"] == 200
    assert body["body"].count(b"data: ") == 4


async def test_an_error_before_the_first_write_still_has_a_status() -> None:
    gateway = ScriptedGateway([FIRST, EngineFailed("the engine died")])
    async with serving(gateway.role) as api:
        refused = await api.http.post("/v1/completions", json=STREAM)
    assert refused.status_code == 500
    assert refused.json()["error"]["code"] == "engine"


async def test_a_failed_whole_answer_has_no_part_of_it() -> None:
    gateway = ScriptedGateway([FIRST, EngineFailed("the engine died")])
    async with serving(gateway.role) as api:
        refused = await api.http.post("/v1/completions", json=ASK)
    assert refused.status_code == 500
    assert set(refused.json()) == {"error"}


@pytest.mark.parametrize("ask", [ASK, STREAM])
async def test_a_client_that_goes_away_leaves_its_turn(ask: dict[str, object]) -> None:
    gateway = ScriptedGateway([FIRST])
    async with serving(gateway.role) as api, asyncio.timeout(10):
        async with httpx.AsyncClient(base_url=api.url, verify=False) as other, asyncio.TaskGroup() as group:
            asking = group.create_task(other.post("/v1/completions", json=ask))
            await gateway.opened.wait()
            asking.cancel()
        await gateway.left.wait()


async def test_a_client_that_goes_away_ends_its_sequence_on_the_worker() -> None:
    async with one_worker(StepProfile(base_ms=5)) as mesh, serving(mesh.gateway) as api:
        stream = await api.client.completions.create(model=MODEL, prompt="hello", max_tokens=400, stream=True)
        await anext(stream)
        assert mesh.worker.role.running() == 1
        await stream.close()
        async with asyncio.timeout(10):
            await mesh.worker.idle()
        mesh.worker.role.check()
        assert mesh.gateway.in_flight() == 0


async def test_a_deadline_that_passes_in_mid_answer_ends_the_stream_with_its_error() -> None:
    async with one_worker(StepProfile(base_ms=5)) as mesh, serving(mesh.gateway) as api:
        late = await api.http.post(
            "/v1/completions", json=STREAM | {"max_tokens": 500}, headers={"x-baton-deadline-ms": "300"}
        )
    *pieces, broken = [json.loads(line.removeprefix("data: ")) for line in late.text.split("\n\n") if line]
    assert 0 < len(pieces) < 500
    assert (broken["error"]["code"], broken["error"]["param"]) == ("deadline", "x-baton-deadline-ms")


async def test_a_body_that_does_not_come_is_given_up_at_the_deadline() -> None:
    async with serving(ScriptedGateway().role, OpenAiSettings(deadline_s=0.05)) as api:
        url = httpx.URL(api.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
        assert (await reader.readline()).startswith(b"HTTP/1.1 504 ")
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_does_not_read_is_dropped_once_its_time_is_up() -> None:
    gateway = ScriptedGateway([Delta(0, (Sampled(300),), "x" * 10_000_000)])
    settings = OpenAiSettings(deadline_s=0.05, linger_s=0.05)
    async with serving(gateway.role, settings) as api, asyncio.timeout(10):
        url = httpx.URL(api.url)
        body = json.dumps(STREAM).encode()
        _, writer = await asyncio.open_connection(url.host, url.port, limit=1024)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await gateway.left.wait()
        writer.transport.abort()


async def test_a_bug_of_ours_is_an_internal_error_in_openais_shape() -> None:
    gateway = ScriptedGateway([Delta(0, (Sampled(300),), "", FinishReason.CANCELLED)])
    async with serving(gateway.role) as api:
        broken = await api.http.post("/v1/completions", json=ASK)
    assert broken.status_code == 500
    assert broken.json()["error"]["code"] == "internal_error"
    assert broken.headers["x-should-retry"] == "false"
