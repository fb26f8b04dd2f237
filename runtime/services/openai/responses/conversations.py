"""/v1/conversations: a conversation is a session, of which this API shows the main branch.

Items that are added are said without an answer: the next response answers them. What was said stays: to leave some of
it out, go on from an earlier response.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.routing import Route

from runtime.domain.sessions import MAIN, Item, Session, check_items, check_metadata
from runtime.domain.settling import settled
from runtime.errors import BatonError, FailedPrecondition, InvalidArgument, NotFound
from runtime.ids import TenantId
from runtime.roles.sessions import SessionRole
from runtime.services.access import calling
from runtime.services.openai.body import parse_body
from runtime.services.openai.exchange import Exchange
from runtime.services.openai.responses.acting import Acting, Query
from runtime.services.openai.responses.finding import conversation_named
from runtime.services.openai.responses.ids import conversation_id, item_named, no_item
from runtime.services.openai.responses.items import Gathered
from runtime.services.openai.responses.objects import conversation
from runtime.services.openai.responses.said import Json, beyond, listed, parts, parts_of
from runtime.services.openai.responses.schema import ConversationChange, ConversationRequest, ItemsRequest, added
from runtime.services.openai.responses.telling import respond
from runtime.services.openai.retrying import retried_key
from runtime.services.openai.settings import OpenAiSettings


class Conversations:
    def __init__(self, sessions: SessionRole, settings: OpenAiSettings) -> None:
        self._sessions = sessions
        self._settings = settings

    def routes(self) -> list[Route]:
        settings, path = self._settings, "/v1/conversations/{conversation}"
        every = Acting(settings, {"POST": self.create}, _called)
        one = Acting(settings, {"GET": self.retrieve, "POST": self.update, "DELETE": self.delete}, _called)
        items = Acting(settings, {"GET": self.list_items, "POST": self.add_items}, _called)
        item_ = Acting(settings, {"GET": self.retrieve_item, "DELETE": self.delete_item}, _called)
        return [
            Route("/v1/conversations", every, methods=["POST"]),
            Route(path, one, methods=["GET", "POST", "DELETE"]),
            Route(f"{path}/items", items, methods=["GET", "POST"]),
            Route(f"{path}/items/{{item}}", item_, methods=["GET", "DELETE"]),
        ]

    async def create(self, exchange: Exchange, body: bytes, _ends: float) -> None:
        asked = parse_body(ConversationRequest, body or b"{}")
        said, metadata = added(asked.items), asked.metadata or {}
        with _naming(said):
            items = _whole(said)
        check_metadata(metadata)
        key = retried_key(exchange.scope, body)
        gateway = self._sessions.gateway
        model = self._only_model() if asked.model is None else asked.model
        anew = gateway.served(model).tokenizer.no_deltas() is not None
        made = await self._sessions.create(self._tenant, model, key, metadata=metadata, rerender=anew, said=items)
        await respond(exchange, conversation(made))

    async def retrieve(self, exchange: Exchange, _body: bytes, _ends: float) -> None:
        await respond(exchange, conversation(await self._session(exchange)))

    async def update(self, exchange: Exchange, body: bytes, _ends: float) -> None:
        metadata = parse_body(ConversationChange, body).metadata or {}
        check_metadata(metadata)
        found = await self._session(exchange)
        await respond(exchange, conversation(await self._sessions.store.describe(self._tenant, found.id, metadata)))

    async def delete(self, exchange: Exchange, _body: bytes, _ends: float) -> None:
        """With all that was said in it, and its responses."""
        found = await self._session(exchange)
        await self._sessions.store.delete(self._tenant, found.id)
        told = {"id": conversation_id(found.id), "object": "conversation.deleted", "deleted": True}
        await respond(exchange, told)

    async def add_items(self, exchange: Exchange, body: bytes, _ends: float) -> None:
        Query(exchange.scope)
        said = added(parse_body(ItemsRequest, body).items)
        with _naming(said):
            items = _whole(said)
            key = retried_key(exchange.scope, body)
            found = await self._session(exchange)
            turn = await self._sessions.add(self._tenant, found.id, MAIN, items, key)
        told = [each for number, item in enumerate(turn.asked.items) for each in parts(turn.id, number, item)]
        await respond(exchange, listed(told, len(told)))

    async def list_items(self, exchange: Exchange, _body: bytes, _ends: float) -> None:
        query = Query(exchange.scope, "after", "limit", "order")
        limit, newest_first, named = query.limit(), query.newest_first(), query.text("after")
        found = await self._session(exchange)
        store, after = self._sessions.store, None
        told: list[Json] = []
        try:
            if named is not None:
                after = item_named(named, "after")
                own = await store.item(self._tenant, found.id, MAIN, *after)
                left = beyond(parts_of([own], newest_first=newest_first), named)
                if left is None:
                    raise no_item("after")
                told += left
            said = await store.page(self._tenant, found.id, MAIN, after, limit + 1, newest_first=newest_first)
        except NotFound as error:
            raise no_item("after") from error
        await respond(exchange, listed(told + parts_of(said, newest_first=newest_first), limit))

    async def retrieve_item(self, exchange: Exchange, _body: bytes, _ends: float) -> None:
        Query(exchange.scope)
        await respond(exchange, await self._item(exchange))

    async def delete_item(self, exchange: Exchange, _body: bytes, _ends: float) -> None:
        await self._item(exchange)
        told = "what was said stays; to leave some of it out, go on from an earlier response by previous_response_id"
        raise FailedPrecondition(told, field="item_id")

    @property
    def _tenant(self) -> TenantId:
        return calling().tenant or self._settings.tenant

    def _only_model(self) -> str:
        models = [served.spec.name for served in self._sessions.gateway.models()]
        if len(models) != 1:
            told = f"this gateway serves {len(models)} models: say which one the conversation is to be with"
            raise InvalidArgument(told, field="model")
        return models[0]

    async def _session(self, exchange: Exchange) -> Session:
        named: str = exchange.scope["path_params"]["conversation"]
        return await conversation_named(self._sessions, self._tenant, named, "conversation_id")

    async def _item(self, exchange: Exchange) -> Json:
        found, named = await self._session(exchange), exchange.scope["path_params"]["item"]
        turn, number = item_named(named, "item_id")
        try:
            said = await self._sessions.store.item(self._tenant, found.id, MAIN, turn, number)
        except NotFound as error:
            raise no_item("item_id") from error
        for told in parts(said.turn, said.number, said.item):
            if told["id"] == named:
                return told
        raise no_item("item_id")


def _whole(said: Gathered) -> tuple[Item, ...]:
    """With the names of the calls whose results are among them. What a response called, only the next one resolves."""
    check_items(said.items)
    return settled((), said.items)


@contextmanager
def _naming(said: Gathered) -> Iterator[None]:
    """Tells the field at fault as the request has it, where each call is an item of its own."""
    try:
        yield
    except BatonError as error:
        if error.field is not None and error.field.startswith("items["):
            error.field = said.called(error.field, "items")
        raise


def _called(field: str) -> str:
    match field:
        case "session" | "on_conflict":
            return "conversation_id"
        case "idempotency_key":
            return "idempotency-key"
        case _:
            return field
