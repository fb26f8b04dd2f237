"""A real gateway says how it would place a prompt, places nothing, and then does as it said."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from batonmesh import AsyncClient, InvalidArgument, NotFound, NotSupported
from runtime.domain.routing import Explained, Reason
from runtime.mesh.local import LocalMesh, local_mesh
from runtime.wire.routing import unpack_cost, unpack_explained
from tests.mesh.test_placing import PROMPT, completed, config, measured, until


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[LocalMesh]:
    async with local_mesh(config(tmp_path), http_port=0) as running:
        yield running


async def explained(client: AsyncClient, prompt: str | int) -> Explained:
    return unpack_explained(await client.explain_route("simulated", prompt, max_tokens=4, timeout=10))


async def test_an_explanation_is_what_then_happens_and_both_faces_tell_it(mesh: LocalMesh) -> None:
    await measured(mesh)
    first = await completed(mesh, "A" + PROMPT)
    async with AsyncClient(mesh.grpc) as client:
        said = await explained(client, "A" + PROMPT)
        while not said.costs[0].held:
            await asyncio.sleep(0.05)
            said = await explained(client, "A" + PROMPT)
        assert (said.worker, said.reason) == (first["route"]["worker"], Reason.COST)
        ways = {(cost.worker, cost.prefill) for cost in said.costs}
        assert ways == {(f"decode-{number}", by) for number in range(3) for by in (None, "prefill-0")}
        held = {cost.worker for cost in said.costs if cost.held >= len(PROMPT) - 16}
        assert held == {said.worker}
        final = (await client.complete("simulated", "A" + PROMPT, max_tokens=4, timeout=20)).final
        assert final.HasField("route")
        why = unpack_cost(final.route)
        assert (why.worker, why.held) == (said.worker, said.costs[0].held)


async def test_of_a_prompt_by_its_length_nobody_holds_anything(mesh: LocalMesh) -> None:
    await measured(mesh)
    async with AsyncClient(mesh.grpc) as client:
        said = await client.explain_route("simulated", 2000, timeout=10)
        assert said.prompt_tokens == 2000
        assert said.costs
        assert {cost.held_tokens for cost in said.costs} == {0}


async def test_without_measurements_or_weights_it_says_so(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path / "new")) as mesh, AsyncClient(mesh.grpc) as client:
        said = await explained(client, PROMPT)
        assert (said.reason, said.costs) == (Reason.UNMEASURED, ())
        assert said.worker is not None
    plain = config(tmp_path / "plain", placement="round_robin")
    async with local_mesh(plain) as mesh, AsyncClient(mesh.grpc) as client:
        said = await explained(client, PROMPT)
        assert (said.reason, said.costs) == (Reason.ROUND_ROBIN, ())
        final = (await client.complete("simulated", PROMPT, max_tokens=2, timeout=20)).final
        assert not final.HasField("route")


async def test_what_cannot_be_placed_is_refused_by_its_field(mesh: LocalMesh) -> None:
    async with AsyncClient(mesh.grpc) as client:
        for wrong, field in ((0, "tokens"), (8193, "tokens"), ([], "prompt"), ([1] * 8193, "prompt")):
            with pytest.raises(InvalidArgument) as refused:
                await client.explain_route("simulated", wrong, timeout=10)
            assert refused.value.field == field
        with pytest.raises(InvalidArgument, match="max_tokens"):
            await client.explain_route("simulated", 10, max_tokens=0, timeout=10)
        with pytest.raises(NotFound, match="tenant"):
            await client.explain_route("simulated", 10, tenant="nobody", timeout=10)
        with pytest.raises(NotFound, match="model"):
            await client.explain_route("other", 10, timeout=10)
    async with AsyncClient(mesh.controller.address) as client:
        with pytest.raises(NotSupported, match="gateway"):
            await client.explain_route("simulated", 10, timeout=10)


async def test_a_worker_that_drains_is_left_out(mesh: LocalMesh) -> None:
    await measured(mesh)
    async with AsyncClient(mesh.grpc) as client:
        await client.drain("decode-1", 60, timeout=10)
        view = mesh.gateway.role.view
        await until(lambda: all(worker.draining or worker.id != "decode-1" for worker in view().workers))
        said = await explained(client, PROMPT)
        assert {cost.worker for cost in said.costs} == {"decode-0", "decode-2"}
