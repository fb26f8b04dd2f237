"""Who calls by HTTP: every path but the health wants an API key. Before the body is read, and before any route."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from runtime.errors import BatonError
from runtime.services.access import ByKey, called_by
from runtime.services.openai.body import ClientGone
from runtime.services.openai.exchange import Exchange

_FREE = "/healthz"


class KeyedApi:
    """Wraps an application whose every call then has its caller."""

    def __init__(self, app: ASGIApp, keys: ByKey) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) == _FREE:
            await self._app(scope, receive, send)
            return
        try:
            caller = self._keys.caller_of(Headers(scope=scope).get("authorization", ""))
        except BatonError as error:
            await _refuse(Exchange(scope, receive, send), error)
            return
        called_by(caller)
        await self._app(scope, receive, send)


async def _refuse(exchange: Exchange, error: BatonError) -> None:
    try:
        await exchange.fail(error)
    except ClientGone:
        return
