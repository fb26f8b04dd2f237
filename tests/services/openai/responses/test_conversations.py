"""Conversations by OpenAI's unmodified client: they are sessions; what is added to one its next response hears."""

import openai
import pytest

from batonmesh.v1 import session_pb2 as pb
from runtime.domain.sequence import Sampling
from runtime.engine.simulated import SimulatedTokenizer, continuation
from tests.services.openai.responses.conftest import Api, texts, words
from tests.services.session_mesh import NEW, expected


def answered(*messages: tuple[str, str]) -> str:
    """To a conversation whose first words these are."""
    prompt = SimulatedTokenizer().render_chat([{"role": role, "content": text} for role, text in messages])
    return words(continuation(prompt, Sampling(NEW, temperature=0)))


async def test_a_conversation_remembers(api: Api) -> None:
    asked = ["My dog is called Rex.", "What is my dog called?"]
    made = await api.client.conversations.create(metadata={"topic": "dogs"})
    assert (made.metadata, made.created_at > 1_700_000_000) == ({"topic": "dogs"}, True)
    one = await api.ask(asked[0], conversation=made.id)
    two = await api.ask(asked[1], conversation={"id": made.id})
    answers = [words(tokens) for tokens in expected(*asked)]
    assert [one.output_text, two.output_text] == answers
    assert two.conversation is not None
    assert two.conversation.id == made.id
    session = f"sess-{made.id.removeprefix('conv_')}"
    assert await api.user.said(session) == [asked[0], answers[0], asked[1], answers[1]]
    listed = await api.user.stub.ListSessions(pb.ListSessionsRequest())
    assert [each.id for each in listed.sessions] == [session]


async def test_a_conversation_is_changed_and_deleted(api: Api) -> None:
    conversations = api.client.conversations
    made = await conversations.create()
    changed = await conversations.update(made.id, metadata={"topic": "cats"})
    assert await conversations.retrieve(made.id) == changed
    assert changed.metadata == {"topic": "cats"}
    response = await api.ask("Hello.", conversation=made.id)
    gone = await conversations.delete(made.id)
    assert (gone.id, gone.deleted) == (made.id, True)
    for lost in (
        conversations.retrieve(made.id),
        conversations.delete(made.id),
        api.client.responses.retrieve(response.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await lost


async def test_what_is_added_is_heard_by_the_next_response_and_asked_nobody_before(api: Api) -> None:
    items = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "My dog is called Rex."}]
    made = await api.client.conversations.create(items=items)  # type: ignore[arg-type]  # as a person writes them
    more = await api.client.conversations.items.create(
        made.id, items=[{"role": "user", "type": "message", "content": [{"type": "input_text", "text": "He is old."}]}]
    )
    said = [("system", "Be brief."), ("user", "My dog is called Rex."), ("user", "He is old.")]
    one = await api.ask("How old?", conversation=made.id)
    assert one.output_text == answered(*said, ("user", "How old?"))
    listed = [each async for each in api.client.conversations.items.list(made.id, order="asc", limit=2)]
    assert texts(listed) == [
        *(text for _, text in said), "How old?", one.output_text,
    ]  # fmt: skip
    assert listed[2] == more.data[0]
    assert [each.id async for each in api.client.conversations.items.list(made.id, limit=3)] == [
        each.id for each in reversed(listed)
    ]
    assert listed[4].id == one.output[0].id
    assert listed[4].id is not None
    assert await api.client.conversations.items.retrieve(listed[4].id, conversation_id=made.id) == listed[4]
    # An answer without a question of its own: what was added is the question.
    await api.client.conversations.items.create(made.id, items=[{"role": "user", "content": "And now?"}])
    two = await api.client.responses.create(
        model="simulated", conversation=made.id, max_output_tokens=NEW, temperature=0
    )
    tokenizer = SimulatedTokenizer()
    before = tokenizer.render_chat([{"role": role, "content": text} for role, text in (*said, ("user", "How old?"))])
    context = [*before, *continuation(before, Sampling(NEW, temperature=0))]
    preamble: list[dict[str, object]] = [{"role": "system", "content": "Be brief."}]
    context += tokenizer.render_delta(preamble, [{"role": "user", "content": "And now?"}])
    assert two.output_text == words(continuation(context, Sampling(NEW, temperature=0)))


async def test_what_was_said_stays(api: Api) -> None:
    made = await api.client.conversations.create(items=[{"role": "user", "content": "Hello."}])
    (item,) = (await api.client.conversations.items.list(made.id)).data
    assert item.id is not None
    with pytest.raises(openai.ConflictError, match="what was said stays"):
        await api.client.conversations.items.delete(item.id, conversation_id=made.id)
    assert len((await api.client.conversations.items.list(made.id)).data) == 1


async def test_instructions_are_for_one_response_only(api: Api) -> None:
    made = await api.client.conversations.create()
    french = await api.ask("Hello.", conversation=made.id, instructions="Speak French.")
    assert french.output_text == answered(("system", "Speak French."), ("user", "Hello."))
    assert french.instructions == "Speak French."
    again = await api.ask("And you?", conversation=made.id, instructions="Speak French.")
    assert again.usage is not None
    assert again.usage.input_tokens_details.cached_tokens > 0
    assert again.model_dump()["baton"]["drift_tokens"] == 0
    said = [
        ("user", "Hello."),
        ("assistant", french.output_text),
        ("user", "And you?"),
        ("assistant", again.output_text),
    ]
    plain = await api.ask("Bye.", conversation=made.id)
    assert plain.output_text == answered(*said, ("user", "Bye."))
    assert plain.model_dump()["baton"]["drift_tokens"] > 0
    listed = api.client.conversations.items.list(made.id, order="asc")
    assert texts([each async for each in listed]) == [*(text for _, text in said), "Bye.", plain.output_text]
    more = await api.ask("Really?", conversation=made.id)
    assert more.model_dump()["baton"]["drift_tokens"] == 0


async def test_going_on_from_a_response_of_a_conversation_says_nothing_in_it(api: Api) -> None:
    made = await api.client.conversations.create()
    one = await api.ask("Hello.", conversation=made.id)
    aside = await api.ask("Between us?", previous_response_id=one.id)
    assert aside.output_text == words(expected("Hello.", "Between us?")[1])
    assert (await api.ask("More?", previous_response_id=aside.id)).conversation is None
    assert len((await api.client.conversations.items.list(made.id)).data) == 2


async def test_a_conversation_that_is_busy_says_so(api: Api) -> None:
    made = await api.client.conversations.create()
    running = await api.ask("Hello.", conversation=made.id, background=True, max_output_tokens=3000)
    for asked in (
        api.ask("Me too.", conversation=made.id),
        api.client.conversations.items.create(made.id, items=[{"role": "user", "content": "And me."}]),
    ):
        with pytest.raises(openai.ConflictError) as refused:
            await asked
        assert refused.value.code == "conversation_locked"
    await api.client.responses.cancel(running.id)
    assert (await api.client.conversations.items.list(made.id)).data == []
    assert (await api.ask("Now.", conversation=made.id)).output_text == words(expected("Now.")[0])


async def test_a_session_is_a_conversation_and_its_turns_are_responses(api: Api) -> None:
    session = await api.user.create()
    first = (await api.user.run(session, "Hello.")).end
    found = await api.client.responses.retrieve(f"resp_{first.id.removeprefix('turn-')}")
    assert found.output_text == words(expected("Hello.")[0])
    assert found.conversation is not None
    assert found.conversation.id == f"conv_{session.removeprefix('sess-')}"
    second = await api.ask("And?", conversation=found.conversation.id)
    assert second.output_text == words(expected("Hello.", "And?")[1])
    raw = await api.client.responses.with_raw_response.create(model="simulated", input="x", max_output_tokens=1)
    hidden = raw.headers["x-baton-session"].removeprefix("sess-")
    with pytest.raises(openai.NotFoundError):
        await api.client.conversations.retrieve(f"conv_{hidden}")
    with pytest.raises(openai.NotFoundError):
        await api.ask("Hello.", conversation=f"conv_{hidden}")
