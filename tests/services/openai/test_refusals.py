"""Bad requests over HTTP: their status, what the client library makes of them, and that the gateway serves on."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import openai
import pytest

from runtime.errors import DeadlineExceeded
from runtime.services.openai.settings import OpenAiSettings
from tests.services.openai.one_worker import MODEL, SPEC, one_worker
from tests.services.openai.scripted import ScriptedGateway
from tests.services.openai.serving import Api, serving

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
OK = {"model": MODEL, "prompt": "hello", "max_tokens": 1}


def fault(response: httpx.Response) -> tuple[int, str | None, str | None]:
    """Status, code and param of a refusal, which must have OpenAI's shape and forbid retries."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if response.status_code < 500 else "server_error")
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["x-request-id"]
    return response.status_code, error["code"], error["param"]


async def test_the_client_library_raises_its_own_errors_with_the_field() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        create = api.client.chat.completions.create
        with pytest.raises(openai.BadRequestError) as unsupported:
            await create(model=MODEL, messages=HELLO, store=True)
        with pytest.raises(openai.BadRequestError) as unknown:
            await create(model=MODEL, messages=HELLO, extra_body={"temprature": 1})
        with pytest.raises(openai.BadRequestError) as hot:
            await create(model=MODEL, messages=HELLO, temperature=3)
        with pytest.raises(openai.NotFoundError) as missing:
            await create(model="other", messages=HELLO)
        await create(model=MODEL, messages=HELLO, max_tokens=1)
    assert (unsupported.value.param, unsupported.value.code) == ("store", "unsupported_parameter")
    assert (unknown.value.param, unknown.value.code) == ("temprature", "invalid_value")
    assert hot.value.param == "temperature"
    assert "between 0 and 2, got 3.0" in hot.value.message
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found")


async def test_a_prompt_beyond_the_context_is_told_the_limit_and_its_length() -> None:
    long = "x" * 600
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        for asked, field in (({"prompt": long}, "prompt"), ({"prompt": "hello", "max_tokens": 600}, "max_tokens")):
            refused = await api.http.post("/v1/completions", json={"model": MODEL} | asked)
            assert fault(refused) == (400, "context_length_exceeded", field)
            assert "600" in refused.json()["error"]["message"]
            assert str(SPEC.max_tokens) in refused.json()["error"]["message"]
        messages = [{"role": "user", "content": long}]
        for chat, field in (
            ({"messages": messages}, "messages"),
            ({"messages": messages, "max_completion_tokens": 1}, "messages"),
            ({"messages": HELLO, "max_completion_tokens": 600}, "max_completion_tokens"),
        ):
            refused = await api.http.post("/v1/chat/completions", json={"model": MODEL} | chat)
            assert fault(refused) == (400, "context_length_exceeded", field)


async def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        for field, value in (
            ("prompt", [SPEC.vocab]),
            ("stop_token_ids", [SPEC.vocab]),
            ("logit_bias", {str(SPEC.vocab): 1}),
            ("banned_tokens", [[1, SPEC.vocab]]),
        ):
            refused = await api.http.post("/v1/completions", json=OK | {field: value})
            assert fault(refused) == (400, "invalid_value", field)
            assert str(SPEC.vocab) in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_p", 1.5),
        ("typical_p", 0),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -3),
        ("min_tokens", 2),
        ("bad_words", [" "]),
        ("bad_words", ["x" * 65]),
        ("bad_words", ["x" * 129]),
    ],
)
async def test_an_option_out_of_its_range_is_refused_by_its_name(field: str, value: object) -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        assert fault(await api.http.post("/v1/completions", json=OK | {field: value})) == (400, "invalid_value", field)


async def test_bad_words_are_not_in_the_answer() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        asked = OK | {"max_tokens": 30, "seed": 3}
        free = (await api.http.post("/v1/completions", json=asked)).json()["choices"][0]["text"].split()
        (word, *_) = free
        kept = await api.http.post("/v1/completions", json=asked | {"bad_words": [word]})
    text = kept.json()["choices"][0]["text"].split()
    assert len(text) == len(free)
    assert word not in text


@pytest.mark.parametrize(
    "body", [b"", b"{", b'"hello"', b'{"model": "simulated", "prompt": "\xff"}', b'{"temperature": NaN}']
)
async def test_malformed_bodies_are_refused_and_the_next_request_is_served(body: bytes) -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        assert fault(await api.http.post("/v1/completions", content=body)) == (400, "invalid_value", "body")
        assert (await api.http.post("/v1/completions", json=OK)).status_code == 200


@asynccontextmanager
async def wire(api: Api) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    url = httpx.URL(api.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_an_announced_body_beyond_the_limit_is_refused_before_it_is_sent() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api, wire(api) as (reader, writer):
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")


async def test_an_unannounced_body_is_refused_as_soon_as_it_is_beyond_the_limit() -> None:
    settings = OpenAiSettings(max_body_bytes=1_000_000)
    async with one_worker() as mesh, serving(mesh.gateway, settings) as api:
        async with wire(api) as (reader, writer), asyncio.TaskGroup() as group:
            writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            status = group.create_task(reader.readline())
            while not status.done():  # the body has no end
                writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                await writer.drain()
        assert status.result().startswith(b"HTTP/1.1 413 ")
        assert (await api.http.post("/v1/completions", json=OK)).status_code == 200


async def test_a_prompt_of_100_mb_is_told_the_limit() -> None:
    body = json.dumps(OK | {"prompt": "x" * 100_000_000}).encode()
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        refused = await api.http.post("/v1/completions", content=body)
    assert fault(refused) == (413, "too_large", "body")
    assert f"at most {OpenAiSettings().max_body_bytes} bytes" in refused.json()["error"]["message"]


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1.5", "", "9" * 30, "²"])
async def test_a_deadline_that_is_none_is_refused(value: str) -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        headers = [(b"x-baton-deadline-ms", value.encode("latin-1"))]
        refused = await api.http.post("/v1/completions", json=OK, headers=headers)
    assert fault(refused) == (400, "invalid_value", "x-baton-deadline-ms")


async def deadline_given(api: Api, gateway: ScriptedGateway, headers: dict[str, str]) -> float:
    await api.http.post("/v1/completions", json=OK, headers=headers)
    return gateway.asked[-1].deadline_s


async def test_the_deadline_counts_from_the_arrival_and_is_the_clients_or_the_default() -> None:
    gateway = ScriptedGateway([DeadlineExceeded("late", field="deadline_ms")])
    async with serving(gateway.role, OpenAiSettings(deadline_s=50)) as api:
        assert 4 < await deadline_given(api, gateway, {"x-baton-deadline-ms": "5000"}) < 5
        assert 49 < await deadline_given(api, gateway, {}) < 50
        late = await api.http.post("/v1/completions", json=OK)
    assert fault(late) == (504, "deadline", "x-baton-deadline-ms")
