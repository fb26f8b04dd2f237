"""What responses and conversations do not take: each refused by name, with an error that no retry is tried on, and
nothing half-written."""

from collections.abc import Awaitable, Callable

import httpx
import openai
import pytest

from tests.services.openai.responses.conftest import Api

USER: dict[str, object] = {"role": "user", "content": "Hello."}
TOOL: dict[str, object] = {"type": "function", "name": "f", "parameters": {}}
CALL: dict[str, object] = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
RESULT: dict[str, object] = {"type": "function_call_output", "call_id": "c", "output": "x"}
REFUSED: dict[str, tuple[str, dict[str, object]]] = {
    "another kind of tool": ("tools[0].type", {"tools": [{"type": "web_search"}]}),
    "a tool as chat completions have it": ("tools[0].name", {"tools": [{"type": "function", "function": TOOL}]}),
    "a bad name": ("tools[0].name", {"tools": [TOOL | {"name": "a b"}]}),
    "an unknown field of a tool": ("tools[0].colour", {"tools": [TOOL | {"colour": "red"}]}),
    "a tool that runs on": ("tools[0].async", {"tools": [TOOL | {"async": True}]}),
    "a NUL in a tool": ("tools[0].description", {"tools": [TOOL | {"description": "a\0b"}]}),
    "two of a name": ("tools", {"tools": [TOOL, TOOL]}),
    "129 tools": ("tools", {"tools": [TOOL | {"name": f"f{n}"} for n in range(129)]}),
    "a forced call of nothing": ("tool_choice", {"tool_choice": "required"}),
    "a forced call of another": ("tool_choice", {"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}),
    "some of the tools": ("tool_choice", {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto"}}),
    "a choice that is none": ("tool_choice", {"tools": [TOOL], "tool_choice": "sometimes"}),
    "a bound of calls": ("max_tool_calls", {"tools": [TOOL], "max_tool_calls": 1}),
    "two grammars with tools": (
        "tool_choice",
        {"tools": [TOOL], "tool_choice": "required", "text": {"format": {"type": "json_object"}}},
    ),
    "a call without its result": ("input[1]", {"input": [USER, CALL]}),
    "a second call without its result": ("input[1]", {"input": [USER, CALL, CALL | {"call_id": "d"}, RESULT]}),
    "arguments that are no object": ("input[0].arguments", {"input": [CALL | {"arguments": "[]"}, RESULT]}),
    "a call of no name": ("input[0].name", {"input": [CALL | {"name": "a b"}, RESULT]}),
    "an id with a NUL": ("input[1].call_id", {"input": [CALL, RESULT | {"call_id": "a\0b"}]}),
    "an id too long": ("input[0].call_id", {"input": [CALL | {"call_id": "c" * 65}]}),
    "a result without an id": ("input[1].call_id", {"input": [CALL, {"type": "function_call_output", "output": "x"}]}),
    "a result with a NUL": ("input[2].output", {"input": [USER, CALL, RESULT | {"output": "a\0b"}]}),
    "a result that is an image": (
        "input[1].output[0].type",
        {"input": [CALL, RESULT | {"output": [{"type": "input_image"}]}]},
    ),
    "a message with an id of a call": ("input[0].call_id", {"input": [USER | {"call_id": "c"}]}),
    "an image": ("input[0].content[0].type", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
    "a reference": ("input[1].type", {"input": [USER, {"type": "item_reference", "id": "msg_1"}]}),
    "an unknown role": ("input[0].role", {"input": [{"role": "captain", "content": "x"}]}),
    "truncation": ("truncation", {"truncation": "auto"}),
    "reasoning": ("reasoning", {"reasoning": {"effort": "high"}}),
    "logprobs": ("include", {"include": ["message.output_text.logprobs"]}),
    "a template": ("prompt", {"prompt": {"id": "p"}}),
    "moderation": ("moderation", {"extra_body": {"moderation": {"model": "m"}}}),
    "an unknown field": ("colour", {"extra_body": {"colour": "red"}}),
    "the older bound": ("max_tokens", {"extra_body": {"max_tokens": 3}}),
    "no tokens": ("max_output_tokens", {"max_output_tokens": 0}),
    "a hot answer": ("temperature", {"temperature": 9}),
    "too long an answer": ("max_output_tokens", {"max_output_tokens": 1 << 20}),
    "no input": ("input", {"input": []}),
    "a NUL": ("input[0].content", {"input": "a\0b"}),
    "a NUL in the instructions": ("instructions", {"instructions": "a\0b"}),
    "17 pairs": ("metadata", {"metadata": {f"key{n}": "x" for n in range(17)}}),
    "a long key": ("metadata", {"metadata": {"k" * 65: "x"}}),
    "a long value": ("metadata", {"metadata": {"k": "x" * 513}}),
    "a NUL in the metadata": ("metadata", {"metadata": {"k": "\0"}}),
    "a number in the metadata": ("metadata.k", {"metadata": {"k": 1}}),
    "an unknown format": ("text.format", {"text": {"format": {"type": "xml"}}}),
    "a bad schema": ("text.format", {"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}}),
    "two grammars": (
        "guided_regex",
        {"text": {"format": {"type": "json_object"}}, "extra_body": {"guided_regex": "a"}},
    ),
    "not stored in the background": ("store", {"store": False, "background": True}),
    "not stored, but going on": ("store", {"store": False, "previous_response_id": "resp_0123456789abcdef"}),
    "two pasts": ("previous_response_id", {"previous_response_id": "resp_1", "conversation": "conv_1"}),
    "a conversation that is none": ("conversation", {"conversation": {"name": "x"}}),
}


async def test_what_a_response_does_not_take_is_refused_by_name(api: Api) -> None:
    for name, (field, change) in REFUSED.items():
        with pytest.raises(openai.BadRequestError) as refused:
            await api.ask("Hello.", **change)
        assert refused.value.param == field, name
        assert refused.value.response.headers["x-should-retry"] == "false", name
    assert set(api.rows().values()) == {0}


async def test_a_schema_that_no_worker_takes_fails_the_turn_by_its_field(api: Api) -> None:
    """Only a worker reads grammars, so there is a turn by then: it failed."""
    with pytest.raises(openai.BadRequestError) as refused:
        await api.ask("Hello.", tools=[TOOL | {"parameters": {"type": "odd"}}], tool_choice="required")
    assert refused.value.param == "tools"
    turn = refused.value.response.headers["x-baton-turn"]
    assert (await api.client.responses.retrieve(f"resp_{turn.removeprefix('turn-')}")).status == "failed"


async def test_an_item_that_is_too_large_is_refused_with_its_size(api: Api) -> None:
    for change in ({"input": "x" * ((1 << 20) + 1)}, {"instructions": "x" * ((1 << 20) + 1)}):
        with pytest.raises(openai.APIStatusError, match="the limit is 1048576") as refused:
            await api.ask("Hello.", **change)
        assert (refused.value.status_code, refused.value.response.headers["x-should-retry"]) == (413, "false")


async def test_text_that_is_not_unicode_is_refused(api: Api) -> None:
    body = b'{"model": "simulated", "input": "a\\ud800b"}'
    async with httpx.AsyncClient(verify=False) as http:
        for path in ("responses", "conversations"):
            refused = await http.post(f"{api.url}/{path}", content=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "body")


Ask = Callable[[Api, str], Awaitable[object]]
BY_RESPONSE: dict[str, Ask] = {
    "response_id": lambda api, ident: api.client.responses.retrieve(ident),
    "response_id, cancel": lambda api, ident: api.client.responses.cancel(ident),
    "response_id, delete": lambda api, ident: api.client.responses.delete(ident),
    "response_id, items": lambda api, ident: _listed(api.client.responses.input_items.list(ident)),
    "previous_response_id": lambda api, ident: api.ask("Hello.", previous_response_id=ident),
}
BY_CONVERSATION: dict[str, Ask] = {
    "conversation_id": lambda api, ident: api.client.conversations.retrieve(ident),
    "conversation_id, update": lambda api, ident: api.client.conversations.update(ident, metadata={}),
    "conversation_id, delete": lambda api, ident: api.client.conversations.delete(ident),
    "conversation_id, items": lambda api, ident: _listed(api.client.conversations.items.list(ident)),
    "conversation_id, add": lambda api, ident: api.client.conversations.items.create(
        ident, items=[{"role": "user", "content": "x"}]
    ),
    "conversation": lambda api, ident: api.ask("Hello.", conversation=ident),
}


async def test_what_is_unknown_is_so_in_the_same_words_whatever_it_looks_like(api: Api) -> None:
    made, response = await api.client.conversations.create(), await api.ask("Hello.")
    before, unknown = api.rows(), ["0123456789abcdef", "nonsense", "\0", "ünï", "a" * 300]
    for name, ask in (BY_RESPONSE | BY_CONVERSATION).items():
        prefix, other = ("resp", made.id) if name in BY_RESPONSE else ("conv", response.id)
        told = set()
        for ident in (other, *(f"{prefix}_{each}" for each in unknown)):
            with pytest.raises(openai.NotFoundError) as refused:
                await ask(api, ident)
            assert refused.value.param == name.split(",")[0]
            told.add((refused.value.message, refused.value.code))
        assert len(told) == 1, name
    assert api.rows() == before


async def test_items_are_refused_by_name(api: Api) -> None:
    made = await api.client.conversations.create()
    items = api.client.conversations.items
    for field, added in {
        "items": [USER] * 21,
        "items[1].content": [USER, {"role": "user", "content": "a\0b"}],
        "items[0].type": [{"type": "reasoning", "id": "r", "summary": []}],
        "items[1]": [USER, CALL],
        "items[0].arguments": [CALL | {"arguments": "x"}],
    }.items():
        for asked in (
            lambda added=added: items.create(made.id, items=added),
            lambda added=added: api.client.conversations.create(items=added),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                await asked()
            assert refused.value.param == field
    with pytest.raises(openai.BadRequestError) as none:
        await items.create(made.id, items=[])
    assert none.value.param == "items"
    assert (await items.list(made.id)).data == []
    assert (api.rows()["sessions"], api.rows()["turns"]) == (1, 0)
    with pytest.raises(openai.BadRequestError) as pairs:
        await api.client.conversations.update(made.id, metadata={f"key{n}": "x" for n in range(17)})
    assert pairs.value.param == "metadata"
    for ident in ("msg_0123456789abcdef_0", "msg_0123456789abcdef_999999999999", "x"):
        with pytest.raises(openai.NotFoundError) as unknown:
            await items.retrieve(ident, conversation_id=made.id)
        assert unknown.value.param == "item_id"


async def test_a_conversation_takes_no_more_than_a_response(api: Api) -> None:
    pairs = {"17 pairs": {f"key{n}": "x" for n in range(17)}, "a long key": {"k" * 65: "x"}, "a NUL": {"k": "\0"}}
    for case, metadata in pairs.items():
        with pytest.raises(openai.BadRequestError) as refused:
            await api.client.conversations.create(metadata=metadata, items=[USER])  # type: ignore[list-item]
        assert refused.value.param == "metadata", case
    large = [USER, {"role": "user", "content": "x" * ((1 << 20) + 1)}]
    with pytest.raises(openai.APIStatusError, match="the limit is 1048576") as too_large:
        await api.client.conversations.create(items=large)  # type: ignore[arg-type]
    assert (too_large.value.status_code, too_large.value.param) == (413, "items[1].content")
    assert set(api.rows().values()) == {0}


async def test_10_000_items_are_too_many_whatever_they_are(api: Api) -> None:
    """Not by the client, which takes seconds to look through them."""
    async with httpx.AsyncClient(base_url=f"{api.url}/", verify=False) as http:
        for path, field in (("responses", "input"), ("conversations", "items")):
            for each in (USER, CALL):
                refused = await http.post(path, json={"model": "simulated", field: [each] * 10_000})
                assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
    assert set(api.rows().values()) == {0}


async def test_a_query_is_refused_by_name(api: Api) -> None:
    made = await api.ask("Hello.")
    conversation = await api.client.conversations.create()
    async with httpx.AsyncClient(base_url=f"{api.url}/", verify=False) as http:
        for path, field in {
            f"responses/{made.id}?starting_after=1": "starting_after",
            f"responses/{made.id}?stream=true&starting_after=x": "starting_after",
            f"responses/{made.id}?stream=true&starting_after=99": "starting_after",
            f"responses/{made.id}?stream=maybe": "stream",
            f"responses/{made.id}?colour=red": "colour",
            f"responses/{made.id}?include[]=x": "include",
            f"responses/{made.id}/input_items?limit=0": "limit",
            f"responses/{made.id}/input_items?limit=101": "limit",
            f"conversations/{conversation.id}/items?order=up": "order",
        }.items():
            refused = await http.get(path)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
        for path in (f"responses/{made.id}/input_items?after=x", f"conversations/{conversation.id}/items?after=x"):
            unknown = await http.get(path)
            assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "after")


async def test_another_model_is_refused(api: Api) -> None:
    made = await api.client.conversations.create()
    one = await api.ask("Hello.")
    for past in ({"conversation": made.id}, {"previous_response_id": one.id}):
        with pytest.raises(openai.BadRequestError, match="of model 'simulated'") as refused:
            await api.ask("Hello.", model="another", **past)
        assert refused.value.param == "model"
    with pytest.raises(openai.NotFoundError) as unknown:
        await api.ask("Hello.", model="another")
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")


async def _listed(pages: Awaitable[object]) -> object:
    """The first page, or how it failed."""
    return await pages
