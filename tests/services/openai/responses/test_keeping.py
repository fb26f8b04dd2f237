"""What becomes of a response that is there, by OpenAI's unmodified client: background, cancel, delete, its input."""

import asyncio

import openai
import pytest

from tests.services.openai.responses.conftest import Api, texts, words
from tests.services.session_mesh import NEW, expected

LONG = 3000


async def ended(api: Api, ident: str) -> openai.types.responses.Response:
    """As a person polls it; the test's own time limit ends it."""
    while True:
        found = await api.client.responses.retrieve(ident)
        if found.status not in ("queued", "in_progress"):
            return found
        await asyncio.sleep(0.02)


async def test_a_response_in_the_background_is_found_when_it_is_done(api: Api) -> None:
    made = await api.ask("Hello.", background=True)
    assert (made.status, made.background, made.usage) == ("in_progress", True, None)
    done = await ended(api, made.id)
    assert (done.status, done.output_text) == ("incomplete", words(expected("Hello.")[0]))
    stream = await api.client.responses.create(
        model="simulated", input="Hello.", max_output_tokens=NEW, temperature=0, background=True, stream=True
    )
    kinds = [event.type async for event in stream]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]


async def test_a_response_is_cancelled_wherever_it_stands(api: Api) -> None:
    made = await api.ask("Hello.", background=True, max_output_tokens=LONG)
    stream = await api.client.responses.retrieve(made.id, stream=True)
    seen = []
    async for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta":
            break
    cancelled = await api.client.responses.cancel(made.id)
    assert cancelled.status == "cancelled"
    assert cancelled.output_text
    assert cancelled.output[0].status == "incomplete"  # type: ignore[union-attr]  # it is a message
    assert await api.client.responses.cancel(made.id) == cancelled == await ended(api, made.id)
    seen += [event async for event in stream]
    assert seen[-1].type == "response.incomplete"
    assert (seen[-1].response.status, seen[-1].response) == ("cancelled", cancelled)
    with pytest.raises(openai.ConflictError, match="nothing to go on from") as refused:
        await api.ask("And?", previous_response_id=made.id)
    assert refused.value.param == "previous_response_id"
    done = await api.ask("Hello.")
    assert await api.client.responses.cancel(done.id) == done


async def test_a_response_that_has_not_ended_is_nothing_to_go_on_from(api: Api) -> None:
    made = await api.ask("Hello.", background=True, max_output_tokens=LONG)
    with pytest.raises(openai.ConflictError, match="not ended yet"):
        await api.ask("And?", previous_response_id=made.id)
    await api.client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await api.client.responses.retrieve(made.id)


async def test_a_deleted_response_is_gone_and_what_went_on_from_it_is_not(api: Api) -> None:
    one = await api.ask("Hello.")
    raw = await api.client.responses.with_raw_response.create(
        model="simulated", input="And?", max_output_tokens=NEW, temperature=0, previous_response_id=one.id
    )
    two, session = raw.parse(), raw.headers["x-baton-session"]
    await api.client.responses.delete(one.id)
    for lost in (
        api.client.responses.retrieve(one.id),
        api.client.responses.cancel(one.id),
        api.client.responses.delete(one.id),
        api.ask("Or?", previous_response_id=one.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await lost
    three = await api.ask("More?", previous_response_id=two.id)
    assert three.output_text == words(expected("Hello.", "And?", "More?")[2])
    assert (await api.user.branch(session)).turns == 3
    await api.client.responses.delete(two.id)
    await api.client.responses.delete(three.id)
    with pytest.raises(Exception, match="there is no such session"):  # with the last of its responses
        await api.user.branch(session)


async def test_a_deleted_response_takes_what_was_said_in_it_along(api: Api) -> None:
    one = await api.ask("Hello.")
    before = api.rows()
    two = await api.ask("And?", previous_response_id=one.id)
    running = await api.ask("More?", previous_response_id=two.id, background=True, max_output_tokens=LONG)
    aside = await api.ask("Or?", previous_response_id=one.id)
    for made in (aside, two, running):
        await api.client.responses.delete(made.id)
    assert api.rows() | {"notices": 0} == before | {"notices": 0}
    again = await api.ask("And?", previous_response_id=one.id)
    assert again.output_text == two.output_text
    for made in (again, one):
        await api.client.responses.delete(made.id)
    assert set(api.rows().values()) == {0}


async def test_a_response_that_was_tried_twice_is_deleted_with_both_tries(api: Api) -> None:
    once = api.client.with_options(max_retries=0)
    asked = {"model": "simulated", "input": "Hello.", "max_output_tokens": LONG, "temperature": 0}
    for patience in (500, 2000, 8000):
        late = {"x-baton-deadline-ms": str(patience)}
        with pytest.raises(openai.InternalServerError):
            await once.responses.create(**asked | {"user": str(patience)}, extra_headers=late)  # type: ignore[call-overload]
        if api.rows()["turns"]:
            break
    made = await once.responses.create(  # type: ignore[call-overload]
        **asked | {"user": str(patience)}, extra_headers={"x-stainless-retry-count": "1"}
    )
    assert (api.rows()["sessions"], api.rows()["turns"]) == (1, 2)
    await once.responses.delete(made.id)
    assert set(api.rows().values()) == {0}


async def test_a_response_of_a_conversation_leaves_it_what_was_said(api: Api) -> None:
    made = await api.client.conversations.create()
    one = await api.ask("Hello.", conversation=made.id)
    await api.client.responses.delete(one.id)
    assert len((await api.client.conversations.items.list(made.id)).data) == 2


async def test_what_was_asked_is_listed(api: Api) -> None:
    asked = [{"role": "user", "content": f"Number {number}."} for number in range(5)]
    one = await api.ask("Before.")
    made = await api.ask("", input=asked, previous_response_id=one.id)
    said = [item["content"] for item in asked]
    items = api.client.responses.input_items
    for order, expecting in (("asc", said), ("desc", said[::-1])):
        listed = [each async for each in items.list(made.id, order=order, limit=2)]  # type: ignore[arg-type]  # both are
        assert texts(listed) == expecting


async def test_a_response_that_is_not_stored_is_nowhere(api: Api) -> None:
    made = await api.ask("Hello.", store=False)
    assert (made.output_text, made.model_dump()["store"]) == (words(expected("Hello.")[0]), False)
    with pytest.raises(openai.NotFoundError):
        await api.client.responses.retrieve(made.id)
    stream = await api.client.responses.create(
        model="simulated", input="Hello.", max_output_tokens=NEW, temperature=0, store=False, stream=True
    )
    events = [event async for event in stream]
    assert events[-1].response.output_text == made.output_text  # type: ignore[union-attr]  # it is the last


async def test_an_answer_matches_its_schema(api: Api) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"enum": [7]}},
        "required": ["age"],
        "additionalProperties": False,
    }
    text = {"format": {"type": "json_schema", "name": "dog", "schema": schema, "strict": True}}
    made = await api.ask("How old is he?", text=text, max_output_tokens=64)
    assert made.text is not None
    assert made.text.format is not None
    assert made.text.format.type == "json_schema"
    stored = await api.client.responses.retrieve(made.id)
    assert stored == made
