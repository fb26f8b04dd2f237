"""A response outlives its gateway: it is found by its id, goes on, and its stream is resumed where it was."""

from pathlib import Path
from typing import TYPE_CHECKING

from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from runtime.mesh.local import local_mesh
from tests.services.openai.responses.conftest import words
from tests.services.session_mesh import config, expected

if TYPE_CHECKING:
    from openai.types.responses import ResponseStreamEvent

LONG = 400


def client(url: str | None) -> AsyncOpenAI:
    http = DefaultAsyncHttpxClient(verify=False)
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)


async def test_a_stream_goes_on_on_the_next_gateway(tmp_path: Path) -> None:
    settings = config(tmp_path, base_ms=3.0)
    seen: list[ResponseStreamEvent] = []
    async with local_mesh(settings, http_port=0) as mesh, client(mesh.http) as before:
        done = await before.responses.create(model="simulated", input="Hi.", max_output_tokens=4, temperature=0)
        stream = await before.responses.create(
            model="simulated", input="Hello.", max_output_tokens=LONG, temperature=0, background=True, stream=True
        )
        async for event in stream:
            seen.append(event)
            if len(seen) == 12:
                break
    opening = seen[0]
    assert opening.type == "response.created"
    async with local_mesh(settings, http_port=0) as mesh, client(mesh.http) as after:
        assert await after.responses.retrieve(done.id) == done
        rest = await after.responses.retrieve(opening.response.id, stream=True, starting_after=seen[-1].sequence_number)
        seen += [event async for event in rest]
        again = await after.responses.retrieve(opening.response.id, stream=True)
        assert [event async for event in again] == seen
    assert [event.sequence_number for event in seen] == [*range(len(seen))]
    text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    assert text == words(expected("Hello.", tokens=LONG)[0])
