"""A turn told as a response: whole, or as a stream of events from wherever the client stands."""

import json
from collections.abc import AsyncIterator, Iterable

from runtime.domain.sessions import Progress, TurnRecord
from runtime.errors import BatonError
from runtime.pacing import let_others_run
from runtime.roles.gateway import GatewayRole
from runtime.services.openai.exchange import Exchange
from runtime.services.openai.responses.events import ResponseEvents, broken_off
from runtime.services.openai.responses.given import Given
from runtime.services.openai.responses.objects import response, status_of
from runtime.services.openai.responses.said import Json


async def respond(exchange: Exchange, content: Json) -> None:
    await exchange.respond(200, json.dumps(content).encode(), {})


async def stream(
    exchange: Exchange, gateway: GatewayRole, turn: TurnRecord, heard: AsyncIterator[Progress], after: int = -1
) -> None:
    """The events above the number `after`. `heard` is the turn from its beginning, as it becomes durable."""
    events = ResponseEvents(turn, gateway)

    def add(more: Iterable[str]) -> None:
        for event in more:
            if events.told - 1 > after:
                exchange.add(event)

    try:
        add(events.opening())
        await exchange.flush()
        async for progress in heard:
            add(events.more(progress))
            await exchange.flush()
            await let_others_run()
    except BatonError as error:
        if not exchange.begun:
            raise
        exchange.add(broken_off(error, events.told))
    await exchange.end()


async def whole(gateway: GatewayRole, turn: TurnRecord, heard: AsyncIterator[Progress]) -> Json:
    """The response once it has ended."""
    given, ended = Given(gateway), turn
    async for progress in heard:
        given.take(progress)
        ended = progress.turn
    return response(ended, status_of(ended, ended.ending), given, ended.ending)
