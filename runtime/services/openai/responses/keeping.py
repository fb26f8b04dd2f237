"""What can be done with a response that is there: get it, whole or as a stream, cancel and delete it, see its input."""

from starlette.routing import Route

from runtime.domain.sessions import Halt, TurnRecord
from runtime.errors import InvalidArgument, NotSupported
from runtime.ids import TenantId
from runtime.roles.sessions import SessionRole
from runtime.services.access import calling
from runtime.services.openai.exchange import Exchange
from runtime.services.openai.responses.acting import Acting, Query
from runtime.services.openai.responses.events import ResponseEvents
from runtime.services.openai.responses.finding import response_named
from runtime.services.openai.responses.given import Given
from runtime.services.openai.responses.ids import no_item
from runtime.services.openai.responses.objects import response, status_of
from runtime.services.openai.responses.said import beyond, listed, parts
from runtime.services.openai.responses.telling import respond, stream, whole
from runtime.services.openai.serving import within
from runtime.services.openai.settings import OpenAiSettings


class KeptResponses:
    def __init__(self, sessions: SessionRole, settings: OpenAiSettings) -> None:
        self._sessions = sessions
        self._settings = settings

    def routes(self) -> list[Route]:
        one = Acting(self._settings, {"GET": self.retrieve, "DELETE": self.delete}, _called)
        cancel = Acting(self._settings, {"POST": self.cancel}, _called)
        items = Acting(self._settings, {"GET": self.input_items}, _called)
        return [
            Route("/v1/responses/{response}", one, methods=["GET", "DELETE"]),
            Route("/v1/responses/{response}/cancel", cancel, methods=["POST"]),
            Route("/v1/responses/{response}/input_items", items, methods=["GET"]),
        ]

    async def retrieve(self, exchange: Exchange, _body: bytes, _ends: float) -> None:
        query = Query(exchange.scope, "stream", "starting_after", "include_obfuscation")
        if query.flag("include_obfuscation"):
            raise NotSupported("include_obfuscation is not supported yet", field="include_obfuscation")
        after, streamed = query.number("starting_after"), query.flag("stream")
        if after is not None and not streamed:
            raise InvalidArgument("starting_after needs stream to be true", field="starting_after")
        turn, gateway = await self._turn(exchange), self._sessions.gateway
        progress = await self._sessions.store.progress(turn.tenant, turn.session, turn.id, 0)
        if not streamed:
            given, now = Given(gateway), progress.turn
            given.take(progress)
            await respond(exchange, response(now, status_of(now, now.ending), given, now.ending))
            return
        if after is not None:
            events = ResponseEvents(turn, gateway)
            told = [*events.opening(), *events.more(progress)]
            if after >= len(told):
                so_far = f"the last event so far has {len(told) - 1}"
                raise InvalidArgument(f"starting_after is {after}, {so_far}", field="starting_after")
        with self._sessions.watching(turn):
            heard = self._sessions.watch(turn, 0)
            await stream(exchange, gateway, turn, heard, -1 if after is None else after)

    async def cancel(self, exchange: Exchange, _body: bytes, ends: float) -> None:
        """What has ended already is told as it ended."""
        turn = await self._turn(exchange)
        if turn.ending is None:
            await self._sessions.halt(turn.tenant, turn.session, turn.id, Halt.DISCARD)
        ended = whole(self._sessions.gateway, turn, self._sessions.watch(turn, 0))
        await respond(exchange, await within(ends, ended))

    async def delete(self, exchange: Exchange, _body: bytes, ends: float) -> None:
        """What has not ended is ended first, so that it leaves nothing."""
        turn = await self._turn(exchange)
        if turn.ending is None:
            await self._sessions.halt(turn.tenant, turn.session, turn.id, Halt.DISCARD)
            await within(ends, whole(self._sessions.gateway, turn, self._sessions.watch(turn, 0)))
        await self._sessions.store.forget(turn.tenant, turn.id)
        await respond(exchange, {"id": self._named(exchange), "object": "response", "deleted": True})

    async def input_items(self, exchange: Exchange, _body: bytes, _ends: float) -> None:
        """Those of this response alone; what was said before it is in those before it."""
        query = Query(exchange.scope, "after", "limit", "order")
        limit, newest_first, after = query.limit(), query.newest_first(), query.text("after")
        turn = await self._turn(exchange)
        told = [each for number, said in enumerate(turn.asked.items) for each in parts(turn.id, number, said)]
        if newest_first:
            told.reverse()
        left = told if after is None else beyond(told, after)
        if left is None:
            raise no_item("after")
        await respond(exchange, listed(left, limit))

    @property
    def _tenant(self) -> TenantId:
        return calling().tenant or self._settings.tenant

    async def _turn(self, exchange: Exchange) -> TurnRecord:
        return await response_named(self._sessions, self._tenant, self._named(exchange), "response_id")

    def _named(self, exchange: Exchange) -> str:
        named: str = exchange.scope["path_params"]["response"]
        return named


def _called(field: str) -> str:
    return "response_id" if field in ("session", "turn") else field
