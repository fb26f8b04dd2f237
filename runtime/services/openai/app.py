"""The OpenAI-compatible HTTP API of a gateway, as an ASGI application: its routes, the models and the health.

What a request may say is in schema.py, what an answer says in answers.py. Never decides where a request runs.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.domain.routing import DECODE
from runtime.errors import BatonError, Internal, Unavailable
from runtime.roles.gateway import GatewayRole, ServedModel
from runtime.roles.sessions import SessionRole
from runtime.services.access import ByKey
from runtime.services.keys import KeyRing
from runtime.services.openai.answers import ChatAnswer, CompletionAnswer
from runtime.services.openai.conversing import Conversing
from runtime.services.openai.errors import error_body, error_headers, refusal_body
from runtime.services.openai.exchange import REQUEST_ID_HEADER, request_id
from runtime.services.openai.generating import Generating
from runtime.services.openai.keyed import KeyedApi
from runtime.services.openai.responses.conversations import Conversations
from runtime.services.openai.responses.creating import CreatingResponses
from runtime.services.openai.responses.keeping import KeptResponses
from runtime.services.openai.schema import ChatRequest, CompletionRequest
from runtime.services.openai.settings import OpenAiSettings
from runtime.services.openai.tokenizing import TokenizingPool


def openai_app(
    gateway: GatewayRole, settings: OpenAiSettings, keys: KeyRing | None = None, sessions: SessionRole | None = None
) -> Starlette:
    """The application of one gateway, for those who show one of `keys`, or for everybody; its lifespan ends the threads
    that it may have started."""
    pool = TokenizingPool(settings.tokenize_threads, settings.tokenize_waiting)
    listing = Listing(gateway)
    kept: list[Route] = []
    if sessions is None:
        chat = Generating(gateway, settings, pool, ChatRequest, ChatAnswer)
    else:
        chat = Conversing(sessions, settings, pool)
        kept = [
            Route("/v1/responses", CreatingResponses(sessions, settings, pool), methods=["POST"]),
            *KeptResponses(sessions, settings).routes(),
            *Conversations(sessions, settings).routes(),
        ]
    completions = Generating(gateway, settings, pool, CompletionRequest, CompletionAnswer)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            pool.close()

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            *kept,
            Route("/v1/models", listing.models),
            Route("/v1/models/{model:path}", listing.model),
            Route("/healthz", listing.health),
        ],
        exception_handlers={BatonError: _failed, HTTPException: _refused, Exception: _broken},
        middleware=[Middleware(KeyedApi, keys=ByKey(keys))] if keys is not None else [],
        lifespan=lifespan,
    )


class Listing:
    def __init__(self, gateway: GatewayRole) -> None:
        self._gateway = gateway

    async def models(self, request: Request) -> Response:
        data = [_described(served) for served in self._gateway.models()]
        return _reply(request, {"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        return _reply(request, _described(self._gateway.served(request.path_params["model"])))

    async def health(self, request: Request) -> Response:
        """Healthy is a gateway that knows a decode worker to run requests on."""
        decoders = sum(worker.role == DECODE for worker in self._gateway.view().workers)
        if not decoders:
            raise Unavailable("no decode worker serves now", retry_after_ms=1000)
        return _reply(request, {"status": "ok", "decode_workers": decoders})


def _described(served: ServedModel) -> dict[str, object]:
    """`max_model_len` is the context in tokens, as other servers add it to OpenAI's shape."""
    name, context = served.spec.name, served.spec.max_tokens
    return {"id": name, "object": "model", "created": served.created, "owned_by": "baton", "max_model_len": context}


def _reply(request: Request, content: object) -> Response:
    return JSONResponse(content, headers={REQUEST_ID_HEADER: request_id(request.scope)})


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, BatonError)
    return _explain(request, error.status.http, error_body(error, error.field), error_headers(error))


def _explain(request: Request, status: int, body: bytes, headers: Mapping[str, str]) -> Response:
    named = dict(headers) | {REQUEST_ID_HEADER: request_id(request.scope)}
    return Response(body, status, named, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    """A path or a method that does not exist."""
    assert isinstance(error, HTTPException)
    known = "unknown_url" if error.status_code == 404 else "method_not_allowed"
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _explain(request, error.status_code, refusal_body(message, known), error.headers or {})


async def _broken(request: Request, _error: Exception) -> Response:
    """A bug of ours; the server logs it, the client gets no particulars."""
    internal = Internal("the gateway failed to serve this request")
    return await _failed(request, internal)
