"""Whose responses and conversations are whose: another tenant's are not there, in the words for what never was."""

from collections.abc import Awaitable
from pathlib import Path

import openai
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from runtime.domain.identity import Caller, Role
from runtime.ids import TenantId
from runtime.mesh.local import local_mesh
from runtime.protection import AccessConfig
from runtime.services.keys import new_key, write_keys
from tests.services.session_mesh import NEW, config

ACME, GLOBEX = TenantId("acme"), TenantId("globex")


async def test_another_tenant_s_is_not_there(tmp_path: Path) -> None:
    access = AccessConfig(clients="keys", tenants=(ACME, GLOBEX))
    settings = config(tmp_path).model_copy(update={"access": access})
    (mine, kept), (theirs, other) = (new_key(Caller(Role.CLIENT, tenant)) for tenant in (ACME, GLOBEX))
    write_keys(settings.keys, (kept, other))
    async with local_mesh(settings, http_port=0) as mesh:

        def client(key: str) -> AsyncOpenAI:
            http = DefaultAsyncHttpxClient(verify=False)
            return AsyncOpenAI(base_url=f"{mesh.http}/v1", api_key=key, max_retries=2, http_client=http)

        async with client(mine) as owner, client(theirs) as stranger:
            conversation = (await owner.conversations.create(items=[{"role": "user", "content": "Hello."}])).id
            (item,) = (await owner.conversations.items.list(conversation)).data
            response = (await _asked(owner, conversation=conversation)).id
            nothing = {conversation: "conv_0123456789abcdef", response: "resp_0123456789abcdef"}
            told = [
                [await _refused(call) for call in _calls(stranger, *idents, item.id or "")]
                for idents in ((conversation, response), (nothing[conversation], nothing[response]))
            ]
            assert told[0] == told[1]
            assert (await owner.responses.retrieve(response)).id == response
            assert (await owner.conversations.retrieve(conversation)).id == conversation
            assert len((await owner.conversations.items.list(conversation)).data) == 3


async def _asked(client: AsyncOpenAI, **past: str) -> openai.types.responses.Response:
    made: openai.types.responses.Response = await client.responses.create(  # type: ignore[call-overload]  # the rest fits
        model="simulated", input="And you?", max_output_tokens=NEW, **past
    )
    return made


def _calls(client: AsyncOpenAI, conversation: str, response: str, item: str) -> list[Awaitable[object]]:
    return [
        client.responses.retrieve(response),
        client.responses.retrieve(response, stream=True),
        client.responses.cancel(response),
        client.responses.delete(response),
        client.responses.input_items.list(response),
        _asked(client, previous_response_id=response),
        _asked(client, conversation=conversation),
        client.conversations.retrieve(conversation),
        client.conversations.update(conversation, metadata={}),
        client.conversations.delete(conversation),
        client.conversations.items.list(conversation),
        client.conversations.items.create(conversation, items=[{"role": "user", "content": "x"}]),
        client.conversations.items.retrieve(item, conversation_id=conversation),
        client.conversations.items.delete(item, conversation_id=conversation),
        client.chat.completions.create(
            model="simulated",
            messages=[{"role": "user", "content": "x"}],
            extra_headers={"x-baton-session": f"sess-{conversation.removeprefix('conv_')}"},
        ),
    ]


async def _refused(call: Awaitable[object]) -> tuple[str, str | None, str | None]:
    try:
        await call
    except openai.NotFoundError as error:
        return error.message, error.param, error.code
    raise AssertionError("it was found")
