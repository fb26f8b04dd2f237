"""Which texts are rendered beside the event loop: whatever is long, wherever in a request it is."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from runtime.domain.sessions import Asked, Context, Item, Prepared
from runtime.engine.simulated import SimulatedTokenizer
from runtime.ids import SessionId, TenantId
from runtime.roles.gateway import ServedModel
from runtime.roles.making import beginning, hidden_session
from runtime.roles.rendering import Rendering
from tests.roles.one_gateway import SPEC, gateway
from tests.store.talking import ASKED

LONG = "x" * 9


def long_items(context: Context, asked: Asked) -> tuple[Context, Asked]:
    return context, replace(asked, items=(Item("user", LONG),))


def long_instructions(context: Context, asked: Asked) -> tuple[Context, Asked]:
    return context, replace(asked, instructions=LONG)


def a_long_preamble(context: Context, asked: Asked) -> tuple[Context, Asked]:
    return replace(context, tokens=(1, 2), preamble=(Item("system", LONG),)), asked


@pytest.mark.parametrize("lengthen", [long_items, long_instructions, a_long_preamble])
async def test_what_is_long_is_rendered_beside_the_event_loop(
    lengthen: Callable[[Context, Asked], tuple[Context, Asked]],
) -> None:
    beside: list[Prepared] = []

    async def offload(work: Callable[[], Prepared]) -> Prepared:
        beside.append(work())
        return beside[-1]

    async with gateway() as held:
        rendering = Rendering(held.role, 8, offload)
        session = hidden_session(SessionId("sess-1"), TenantId("tenant"), ServedModel(SPEC, SimulatedTokenizer(), 0))
        short = (
            beginning(session),
            replace(ASKED, items=(Item("user", "Hi."),), sampling=replace(ASKED.sampling, max_tokens=1)),
        )
        await rendering.prepare(*short)
        assert beside == []
        prepared = await rendering.prepare(*lengthen(*short))
        assert beside == [prepared]
