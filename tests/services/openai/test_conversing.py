"""Chat completions on a session, by the unmodified OpenAI client: only what is new is sent, a retry is no new turn."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from batonmesh.v1 import session_pb2 as pb
from runtime.engine.simulated import SimulatedTokenizer
from runtime.mesh.local import local_mesh
from tests.services.session_mesh import NEW, User, config, expected, user


class LosingTransport(httpx2.AsyncHTTPTransport):
    """Drops the first `losing` responses after the server has answered."""

    def __init__(self) -> None:
        super().__init__(verify=False)
        self.losing = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if self.losing:
            self.losing -= 1
            await response.aread()
            await response.aclose()
            raise httpx2.ReadError("the response was lost")
        return response


class Api:
    def __init__(self, client: AsyncOpenAI, transport: LosingTransport, someone: User) -> None:
        self.client = client
        self.transport = transport
        self.user = someone

    async def say(self, text: str, session: str, **headers: str) -> tuple[str, str, openai.types.chat.ChatCompletion]:
        """The session, the turn and the answer."""
        raw = await self.client.chat.completions.with_raw_response.create(
            model="simulated",
            messages=[{"role": "user", "content": text}],
            max_tokens=NEW,
            temperature=0,
            extra_headers={"x-baton-session": session, **headers},
        )
        return raw.headers["x-baton-session"], raw.headers["x-baton-turn"], raw.parse()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with local_mesh(config(tmp_path), http_port=0) as mesh, user(mesh.grpc) as someone:
        transport = LosingTransport()
        http = httpx2.AsyncClient(transport=transport)
        async with AsyncOpenAI(base_url=f"{mesh.http}/v1", api_key="none", max_retries=2, http_client=http) as client:
            yield Api(client, transport, someone)


def words(tokens: list[int]) -> str:
    decoder = SimulatedTokenizer().decoder()
    return "".join(decoder.push(token) for token in tokens)


async def test_only_what_is_new_is_sent(api: Api) -> None:
    texts = ["My dog is called Rex.", "What is my dog called?"]
    session, _, first = await api.say(texts[0], "new")
    same, turn, second = await api.say(texts[1], session)
    answers = [words(tokens) for tokens in expected(*texts)]
    assert [first.choices[0].message.content, second.choices[0].message.content] == answers
    assert (same, (await api.user.branch(session)).head) == (session, turn)
    assert second.choices[0].finish_reason == "length"
    assert second.usage is not None
    assert second.usage.prompt_tokens > len(texts[0]) + len(texts[1])
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens
    told = second.model_dump()["baton"]
    assert told["sources"]["pool"] + told["sources"]["handed_over"] == second.usage.prompt_tokens_details.cached_tokens
    assert (told["took"]["completion_tokens"], told["took"]["turns"], told["limit"]) == (NEW, 1, None)


async def test_who_expects_another_head_is_refused(api: Api) -> None:
    expecting = "x-baton-expected-head"
    session, first, _ = await api.say("Hello.", "new", **{expecting: "none"})
    _, second, _ = await api.say("And?", session, **{expecting: first})
    for stale in (first, "none", "turn-none"):
        with pytest.raises(openai.ConflictError, match="not what was expected") as refused:
            await api.say("More?", session, **{expecting: stale})
        assert refused.value.param == expecting
        assert refused.value.response.headers["x-should-retry"] == "false"
    assert (await api.user.branch(session)).head == second


HELLO: dict[str, object] = {"role": "user", "content": "Hello."}
BAD: dict[str, tuple[int, str, list[dict[str, object]]]] = {
    "a NUL": (400, "messages[0].content", [{"role": "user", "content": "a\0b"}]),
    "a message too large": (413, "messages[1].content", [HELLO, {"role": "user", "content": "x" * ((1 << 20) + 1)}]),
    "a result of no call": (409, "messages[0].tool_call_id", [{"role": "tool", "tool_call_id": "c", "content": "x"}]),
}


async def test_bad_input_is_refused_by_its_field_and_nothing_is_half_written(api: Api) -> None:
    session, head, _ = await api.say("Hello.", "new")
    for place in (session, "new"):
        for case, (status, field, messages) in BAD.items():
            with pytest.raises(openai.APIStatusError) as refused:
                await api.client.chat.completions.create(
                    model="simulated",
                    messages=messages,  # type: ignore[arg-type]
                    extra_headers={"x-baton-session": place},
                )
            assert (refused.value.status_code, refused.value.param) == (status, field), case
    many = json.dumps({"model": "simulated", "messages": [HELLO] * 10_000}).encode()
    half = b'{"model": "simulated", "messages": [{"role": "user", "content": "a\\ud800b"}]}'
    for body, field in ((many, "messages"), (half, "body")):
        raw = await api.client._client.post(
            f"{api.client.base_url}chat/completions", content=body, headers={"x-baton-session": session}
        )
        assert (raw.status_code, raw.json()["error"]["param"]) == (400, field)
    assert (await api.user.branch(session)).head == head
    listed = await api.user.stub.ListSessions(pb.ListSessionsRequest())
    assert [each.id for each in listed.sessions] == [session]


async def test_a_stream_is_the_same(api: Api) -> None:
    session, _, _ = await api.say("One.", "new")
    stream = await api.client.chat.completions.create(
        model="simulated", messages=[{"role": "user", "content": "Two."}], max_tokens=NEW, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_headers={"x-baton-session": session},
    )  # fmt: skip
    pieces = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices)
    assert text == words(expected("One.", "Two.")[1])
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == NEW


async def test_a_lost_response_is_asked_for_again_and_the_turn_is_one(api: Api) -> None:
    """The client tries again by itself; so the very session is one too."""
    api.transport.losing = 2
    session, turn, first = await api.say("Hello.", "new")
    assert first.choices[0].message.content == words(expected("Hello.")[0])
    assert ((await api.user.branch(session)).turns, (await api.user.branch(session)).head) == (1, turn)
    listed = await api.user.stub.ListSessions(pb.ListSessionsRequest())
    assert len(listed.sessions) == 1


async def test_the_same_said_twice_is_two_turns(api: Api) -> None:
    session, one, _ = await api.say("Hello.", "new")
    _, two, _ = await api.say("Hello.", session)
    _, three, _ = await api.say("Hello.", session)
    assert len({one, two, three}) == 3
    assert (await api.user.branch(session)).turns == 3


async def test_a_key_of_the_clients_own_is_honoured(api: Api) -> None:
    session, _, _ = await api.say("Hello.", "new")
    turns = [(await api.say("Again.", session, **{"idempotency-key": "mine"}))[1] for _ in range(3)]
    assert len(set(turns)) == 1
    with pytest.raises(openai.ConflictError) as refused:
        await api.say("Something else.", session, **{"idempotency-key": "mine"})
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert refused.value.param == "idempotency-key"


async def test_what_a_session_does_not_take_is_refused_by_name(api: Api) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await api.say("Hello.", "sess-none")
    assert (unknown.value.param, unknown.value.code) == ("x-baton-session", "not_found")
    asked = {"model": "simulated", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    changes: dict[str, dict[str, object]] = {"n": {"n": 2}, "logprobs": {"logprobs": True}}
    for field, change in changes.items():
        with pytest.raises(openai.BadRequestError) as refused:
            await api.client.chat.completions.create(**{**asked, **change}, extra_headers={"x-baton-session": "new"})  # type: ignore[call-overload]
        assert refused.value.param == field
    session, _, _ = await api.say("Hello.", "new")
    other = {**asked, "model": "another"}
    with pytest.raises(openai.BadRequestError, match="one of model 'simulated'") as refused:
        await api.client.chat.completions.create(**other, extra_headers={"x-baton-session": session})  # type: ignore[call-overload]
    assert refused.value.param == "model"
    assert (await api.user.branch(session)).turns == 1
