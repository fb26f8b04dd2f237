"""An ASGI application for one path whose methods are functions, and what a query says. Never knows what they do."""

from collections.abc import Awaitable, Callable, Mapping

from starlette.datastructures import QueryParams
from starlette.types import Scope

from runtime.errors import BatonError, InvalidArgument, NotSupported
from runtime.services.openai.exchange import Exchange
from runtime.services.openai.serving import Serving
from runtime.services.openai.settings import OpenAiSettings

Act = Callable[[Exchange, bytes, float], Awaitable[None]]
"""Given the exchange, the body and the deadline, on the event loop's clock."""

MAX_PAGE = 100
_PAGE = 20
_DIGITS = 9


class Acting(Serving):
    """`called` gives a field's name in this API."""

    def __init__(self, settings: OpenAiSettings, acts: Mapping[str, Act], called: Callable[[str], str] = str) -> None:
        super().__init__(settings)
        self._acts = acts
        self._called = called

    async def _respond(self, exchange: Exchange, body: bytes, ends: float) -> None:
        method = exchange.scope["method"]
        try:
            await self._acts["GET" if method == "HEAD" else method](exchange, body, ends)
        except BatonError as error:
            await exchange.fail(error, self._called)


class Query:
    """What comes after the question mark; what is not `known` is refused by name."""

    def __init__(self, scope: Scope, *known: str) -> None:
        self._sent = QueryParams(scope["query_string"])
        for name in self._sent:
            field = name.removesuffix("[]")
            if field == "include":
                raise NotSupported("include is not supported yet; leave it out", field=field)
            if field not in known:
                raise InvalidArgument(f"unknown parameter {field[:64]}", field=field[:64])

    def text(self, name: str) -> str | None:
        return self._sent.get(name)

    def flag(self, name: str) -> bool:
        sent = self._sent.get(name, "false")
        if sent not in ("true", "false"):
            raise InvalidArgument(f"{name} must be true or false", field=name)
        return sent == "true"

    def number(self, name: str) -> int | None:
        sent = self._sent.get(name)
        if sent is not None and not (sent.isascii() and sent.isdecimal() and len(sent) <= _DIGITS):
            raise InvalidArgument(f"{name} must be a whole number of at most {_DIGITS} digits", field=name)
        return None if sent is None else int(sent)

    def limit(self) -> int:
        limit = self.number("limit")
        if limit is not None and not 1 <= limit <= MAX_PAGE:
            raise InvalidArgument(f"limit must be between 1 and {MAX_PAGE}, got {limit}", field="limit")
        return _PAGE if limit is None else limit

    def newest_first(self) -> bool:
        order = self._sent.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidArgument("order must be asc or desc", field="order")
        return order == "desc"
