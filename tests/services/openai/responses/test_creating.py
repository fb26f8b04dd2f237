"""Responses by OpenAI's unmodified client: created, told as a stream, gone on from. A response is a turn."""

import asyncio

from openai.types.responses import Response

from batonmesh.v1 import session_pb2 as pb
from tests.services.openai.responses.conftest import Api, words
from tests.services.session_mesh import NEW, expected


async def test_a_response_is_a_turn_of_a_session_that_nobody_sees(api: Api) -> None:
    made = await api.ask("My dog is called Rex.", metadata={"who": "Ünï"})
    assert made.output_text == words(expected("My dog is called Rex.")[0])
    assert (made.status, made.incomplete_details and made.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert made.usage is not None
    assert (made.usage.output_tokens, made.usage.total_tokens) == (NEW, made.usage.input_tokens + NEW)
    assert (made.metadata, made.conversation, made.previous_response_id) == ({"who": "Ünï"}, None, None)
    assert await api.client.responses.retrieve(made.id) == made
    listed = await api.user.stub.ListSessions(pb.ListSessionsRequest())
    assert len(listed.sessions) == 0


async def test_a_response_goes_on_from_another_one(api: Api) -> None:
    texts = ["My dog is called Rex.", "What is my dog called?", "And how old is it?"]
    answers = [words(tokens) for tokens in expected(*texts)]
    one = await api.ask(texts[0])
    two = await api.ask(texts[1], previous_response_id=one.id)
    three = await api.ask(texts[2], previous_response_id=two.id)
    assert [one.output_text, two.output_text, three.output_text] == answers
    assert two.previous_response_id == one.id
    assert two.usage is not None
    assert two.usage.input_tokens_details.cached_tokens > 0
    # And again from an older one: another branch, which knows nothing of the first.
    other = await api.ask("Is it a cat?", previous_response_id=one.id)
    assert other.output_text == words(expected(texts[0], "Is it a cat?")[1])
    assert (await api.ask(texts[2], previous_response_id=two.id)).output_text == answers[2]


async def test_many_go_on_from_one_at_the_same_time(api: Api) -> None:
    one = await api.ask("Hello.")
    many = await asyncio.gather(*(api.ask(f"And {n}?", previous_response_id=one.id) for n in range(8)))
    assert [each.output_text for each in many] == [words(expected("Hello.", f"And {n}?")[1]) for n in range(8)]


async def test_a_stream_has_the_events_of_openai(api: Api) -> None:
    stream = await api.client.responses.create(
        model="simulated", input="Hello.", max_output_tokens=NEW, temperature=0, stream=True
    )
    events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    for event in events:
        type(event).model_validate(event.model_dump(warnings="error"), strict=True)
    assert [event.sequence_number for event in events] == [*range(len(events))]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == words(expected("Hello.")[0])
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response == await api.client.responses.retrieve(last.response.id)
    assert isinstance(last.response, Response)


async def test_a_stream_is_resumed_after_every_event(api: Api) -> None:
    stream = await api.client.responses.create(
        model="simulated", input="Hello.", max_output_tokens=NEW, temperature=0, stream=True
    )
    events = [event async for event in stream]
    ident = events[0].response.id  # type: ignore[union-attr]  # the first is of its creation
    for after in range(len(events)):
        again = await api.client.responses.retrieve(ident, stream=True, starting_after=after)
        assert [event async for event in again] == events[after + 1 :]
