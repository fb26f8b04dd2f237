"""Two gateways on one PostgreSQL, by OpenAI's client: either tells, cancels and goes on from the other's responses, and
a retry finds its turn wherever it arrives."""

from pathlib import Path

import httpx2
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from openai.types.responses import Response

from runtime.config import SessionsConfig
from runtime.mesh.gateway import gateway_process
from runtime.mesh.local import local_mesh
from tests.services.session_mesh import config

LONG = 300


async def asked(client: AsyncOpenAI, said: str, tokens: int = 8, **more: object) -> Response:
    made: Response = await client.responses.create(  # type: ignore[call-overload]  # the rest fits
        model="simulated", input=said, max_output_tokens=tokens, temperature=0, **more
    )
    return made


async def test_either_gateway_has_the_other_s_responses(server: str, tmp_path: Path) -> None:
    settings = config(tmp_path, base_ms=1.0).model_copy(update={"sessions": SessionsConfig(store=server, lease_s=2.0)})
    async with (
        local_mesh(settings, http_port=0) as mesh,
        gateway_process(settings, mesh.controller.address, port=0) as second,
    ):
        await second.role.wait_ready()
        app = httpx2.AsyncClient(transport=httpx2.ASGITransport(second.app))
        async with (
            AsyncOpenAI(
                base_url=f"{mesh.http}/v1", api_key="none", http_client=DefaultAsyncHttpxClient(verify=False)
            ) as here,
            AsyncOpenAI(base_url="http://there/v1", api_key="none", http_client=app) as there,
        ):
            stream = await here.responses.create(
                model="simulated", input="Tell me.", max_output_tokens=LONG, temperature=0, stream=True
            )
            seen = []
            async for event in stream:
                seen.append(event)
                if len(seen) == 10:
                    first = seen[0]
                    assert first.type == "response.created"
                    rest = [
                        event
                        async for event in await there.responses.retrieve(
                            first.response.id, stream=True, starting_after=event.sequence_number
                        )
                    ]
            assert seen[10:] == rest
            running = await asked(here, "Tell me more.", tokens=3000, background=True)
            assert (await there.responses.cancel(running.id)).status == "cancelled"
            assert (await here.responses.retrieve(running.id)).status == "cancelled"
            one = await asked(here, "Hello.")
            again = await asked(there, "Hello.", extra_headers={"x-stainless-retry-count": "1"})
            assert again.id == one.id
            two = await asked(there, "And?", previous_response_id=one.id)
            assert await here.responses.retrieve(two.id) == two
