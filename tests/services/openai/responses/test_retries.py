"""OpenAI's client tries again by itself when an answer is lost: the turn is one, and the answer the same."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI

from batonmesh.v1 import session_pb2 as pb
from tests.services.openai.responses.conftest import Api, texts, words
from tests.services.openai.responses.losing import LosingProxy
from tests.services.session_mesh import NEW, expected

LONG = 500


@pytest.fixture
async def proxy(api: Api) -> AsyncIterator[LosingProxy]:
    proxy = LosingProxy(api.url)
    async with proxy.serving():
        yield proxy


@pytest.fixture
async def unlucky(api: Api, proxy: LosingProxy) -> AsyncIterator[Api]:
    """The same, by the proxy."""
    http = DefaultAsyncHttpxClient(verify=False)
    async with AsyncOpenAI(base_url=proxy.url, api_key="none", max_retries=2, http_client=http) as client:
        yield Api(proxy.url, client, api.user, api.file)


async def test_a_lost_answer_is_asked_for_again_and_the_turn_is_one(unlucky: Api, proxy: LosingProxy) -> None:
    made = await unlucky.client.conversations.create()
    proxy.tries, proxy.losing = 0, 2
    answer = await unlucky.ask("Hello.", conversation=made.id)
    assert proxy.tries == 3
    assert answer.output_text == words(expected("Hello.")[0])
    branch = await unlucky.user.branch(f"sess-{made.id.removeprefix('conv_')}")
    assert (branch.turns, branch.head) == (1, f"turn-{answer.id.removeprefix('resp_')}")


async def test_so_it_is_where_the_response_has_a_session_of_its_own_or_goes_on(
    unlucky: Api, proxy: LosingProxy
) -> None:
    proxy.losing = 1
    one = await unlucky.ask("Hello.")
    proxy.losing = 1
    two = await unlucky.ask("And?", previous_response_id=one.id)
    proxy.losing = 1
    fork = await unlucky.ask("Or?", previous_response_id=one.id)
    answers = [words(expected("Hello.", text)[1]) for text in ("And?", "Or?")]
    assert [two.output_text, fork.output_text] == answers
    raw = await unlucky.client.responses.with_raw_response.create(
        model="simulated", input="x", previous_response_id=two.id, max_output_tokens=1
    )
    session = await unlucky.user.stub.GetSession(pb.GetSessionRequest(session=raw.headers["x-baton-session"]))
    assert sorted(branch.turns for branch in session.branches) == [2, 3]


async def test_a_lost_stream_begins_again_and_a_cut_one_is_resumed(unlucky: Api, proxy: LosingProxy) -> None:
    made = await unlucky.client.conversations.create()
    asked = {"model": "simulated", "conversation": made.id, "max_output_tokens": NEW, "temperature": 0, "stream": True}
    proxy.losing = 1
    whole = [event async for event in await unlucky.client.responses.create(**asked, input="Hello.")]  # type: ignore[call-overload]
    assert whole[-1].response.output_text == words(expected("Hello.")[0])
    proxy.cut = 4000
    seen = []
    stream = await unlucky.client.responses.create(**asked, input="Again.")  # type: ignore[call-overload]
    with contextlib.suppress(openai.APIConnectionError):
        async for event in stream:
            seen.append(event)  # noqa: PERF401 - what came before it broke is what counts
    assert seen
    assert seen[-1].type != whole[-1].type, "it was not cut"
    rest = await unlucky.client.responses.retrieve(
        seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number
    )
    seen += [event async for event in rest]
    assert [event.sequence_number for event in seen] == [*range(len(seen))]
    text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    assert text == words(expected("Hello.", "Again.")[1])
    assert (await unlucky.user.branch(f"sess-{made.id.removeprefix('conv_')}")).turns == 2


async def test_a_client_that_loses_patience_comes_back_to_the_turn_that_runs(unlucky: Api, proxy: LosingProxy) -> None:
    made = await unlucky.client.conversations.create()
    proxy.tries = 0
    impatient = Api(proxy.url, unlucky.client.with_options(timeout=0.2, max_retries=20), unlucky.user, unlucky.file)
    answer = await impatient.ask("Hello.", conversation=made.id, max_output_tokens=LONG)
    assert proxy.tries > 1
    assert answer.output_text == words(expected("Hello.", tokens=LONG)[0])
    assert (await unlucky.user.branch(f"sess-{made.id.removeprefix('conv_')}")).turns == 1


async def test_items_that_are_added_and_conversations_are_one_too(unlucky: Api, proxy: LosingProxy) -> None:
    proxy.losing = 1
    made = await unlucky.client.conversations.create(items=[{"role": "user", "content": "One."}])
    proxy.losing = 1
    await unlucky.client.conversations.items.create(made.id, items=[{"role": "user", "content": "Two."}])
    listed = (await unlucky.client.conversations.items.list(made.id)).data
    assert texts(listed) == ["Two.", "One."]


async def test_the_same_asked_twice_is_two_turns(api: Api) -> None:
    made = await api.client.conversations.create()
    two = [await api.ask("Hello.", conversation=made.id) for _ in range(2)]
    assert len({each.id for each in two}) == 2
    alone = await asyncio.gather(*(api.ask("Hello.") for _ in range(3)))
    assert len({each.id for each in alone}) == 3


async def test_another_keys_retry_is_no_retry(api: Api) -> None:
    """Without keys here everybody is one tenant; who tries again shows the same key."""
    made = await api.client.conversations.create()
    http = DefaultAsyncHttpxClient(verify=False)
    asked = {"model": "simulated", "input": "Hello.", "conversation": made.id, "max_output_tokens": 2}
    again = {"x-stainless-retry-count": "1"}
    first = await api.client.responses.create(**asked)  # type: ignore[call-overload]
    async with AsyncOpenAI(base_url=api.url, api_key="another", http_client=http) as other:
        theirs = await other.responses.create(**asked, extra_headers=again)  # type: ignore[call-overload]
    mine = await api.client.responses.create(**asked, extra_headers=again)  # type: ignore[call-overload]
    assert (mine.id == first.id, theirs.id == first.id) == (True, False)


async def test_a_key_of_the_clients_own_is_honoured(api: Api) -> None:
    keyed = {"idempotency-key": "mine"}
    made = await api.client.conversations.create()
    for place in ({}, {"conversation": made.id}):
        tries = [await api.ask("Hello.", **place, extra_headers=keyed) for _ in range(3)]
        assert len({each.id for each in tries}) == 1
        with pytest.raises(openai.ConflictError, match="for another request") as refused:
            await api.ask("Something else.", **place, extra_headers=keyed)
        assert refused.value.response.headers["x-should-retry"] == "false"
        assert refused.value.param == "idempotency-key"


async def test_a_key_of_the_clients_own_is_honoured_by_conversations_too(api: Api) -> None:
    keyed, conversations = {"idempotency-key": "mine"}, api.client.conversations
    one, two = ([{"role": "user", "content": text}] for text in ("One.", "Two."))
    made = [await conversations.create(items=one, extra_headers=keyed) for _ in range(2)]  # type: ignore[arg-type]
    assert made[0] == made[1]
    for _ in range(2):
        await conversations.items.create(made[0].id, items=two, extra_headers=keyed)  # type: ignore[arg-type]
    for asked in (
        conversations.create(items=two, extra_headers=keyed),  # type: ignore[arg-type]
        conversations.items.create(made[0].id, items=one, extra_headers=keyed),  # type: ignore[arg-type]
    ):
        with pytest.raises(openai.ConflictError, match="for another request") as refused:
            await asked
        assert refused.value.param == "idempotency-key"
    assert texts((await conversations.items.list(made[0].id)).data) == ["Two.", "One."]
    assert api.rows()["sessions"] == 1


async def test_the_client_that_waits_does_as_well(api: Api, proxy: LosingProxy) -> None:
    def work() -> tuple[str, str]:
        http = DefaultHttpxClient(verify=False)
        with OpenAI(base_url=proxy.url, api_key="none", max_retries=2, http_client=http) as client:
            proxy.losing = 1
            one = client.responses.create(model="simulated", input="Hello.", max_output_tokens=NEW, temperature=0)
            with client.responses.stream(
                model="simulated", input="And?", previous_response_id=one.id, max_output_tokens=NEW, temperature=0
            ) as stream:
                text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            return one.output_text, text

    answers = [words(tokens) for tokens in expected("Hello.", "And?")]
    assert [*await asyncio.to_thread(work)] == answers
