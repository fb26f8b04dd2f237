"""The root of every call of Baton's services: errors become statuses, bugs become `internal error` and a log entry,
and a request that does not parse is refused by its field. Never lets a traceback out."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError

from runtime.errors import BatonError, Internal, InvalidArgument
from runtime.services.access import Access
from runtime.wire.encoding import unreadable_text
from runtime.wire.errors import MAX_STATUS_CHARACTERS, to_metadata

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its stubs only
Behavior = Callable[[object, Context], Awaitable[object]]
_KINDS: dict[tuple[bool, bool], tuple[str, Callable[..., Handler]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
_OURS = "/batonmesh."
_log = logging.getLogger(__name__)


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Guards Baton's own services; handlers of others on the same server are left as they are.

    Guarded handlers are coroutines that write to their context. A generator would be left unfinished when its call is
    cancelled between two messages, and what it holds would not be freed at once. `access` says who may call what; None
    lets everybody.
    """

    def __init__(self, access: Access | None = None) -> None:
        self._access = access
        self._guarded: dict[str, Handler] = {}

    async def intercept_service(  # type: ignore[override]  # its stubs forget that there may be no such method
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        method = handler_call_details.method
        guarded = self._guarded.get(method)
        if guarded is None:
            handler = await continuation(handler_call_details)
            if handler is None or not method.startswith(_OURS):
                return handler  # of another service, or of none
            guarded = self._guarded[method] = _guarded(handler, method, self._access)
        return guarded


def _guarded(handler: Handler, method: str, access: Access | None) -> Handler:
    kind, wrap = _KINDS[handler.request_streaming, handler.response_streaming]
    behavior: Behavior = getattr(handler, kind)
    return wrap(
        _answering(behavior, method, access),
        request_deserializer=_reading(handler, method),
        response_serializer=handler.response_serializer,
    )


def _answering(behavior: Behavior, method: str, access: Access | None) -> Behavior:
    async def answer(request: object, context: Context) -> object:
        try:
            if access is not None:
                access.admit(method, context)
            if isinstance(request, BatonError):
                raise request
            return await behavior(request, context)
        except Exception as error:  # noqa: BLE001 - the root of every call
            cause = _first(error)
            if isinstance(cause, grpc.aio.InternalError):
                return None  # a write to a caller that has just gone away
            if not isinstance(cause, BatonError):
                _log.exception("a call failed by a bug", extra={"method": method})
                cause = Internal("internal error")
            await _refuse(context, cause)

    return answer


def _first(error: BaseException) -> BaseException:
    """Out of the groups that task groups make."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _reading(handler: Handler, method: str) -> Callable[[bytes], object] | None:
    """The handler's deserializer, but what does not parse becomes an error of ours. gRPC ends a call whose first
    message raises before the handler is reached, so there the error is returned for `_answering` to find."""
    parse, streaming = handler.request_deserializer, handler.request_streaming
    if parse is None:
        return None

    def read(data: bytes) -> object:
        try:
            return parse(data)
        except DecodeError:
            error = _malformed(data, method)
        if streaming:
            raise error
        return error

    return read


def _malformed(data: bytes, method: str) -> InvalidArgument:
    kind = descriptor_pool.Default().FindMethodByName(method.strip("/").replace("/", ".")).input_type
    try:
        field = unreadable_text(memoryview(data), kind)
    except InvalidArgument as error:
        return error
    if field is None:
        return InvalidArgument(f"the message is not a {kind.full_name}", field="message")
    return InvalidArgument(f"{field} is not valid UTF-8", field=field)


async def _refuse(context: Context, error: BatonError) -> NoReturn:
    await context.abort(grpc.StatusCode[error.status.grpc], error.message[:MAX_STATUS_CHARACTERS], to_metadata(error))
