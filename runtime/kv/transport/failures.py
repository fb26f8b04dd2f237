"""Failed gRPC calls as errors of Baton. For everything that calls by gRPC."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar, cast

import grpc

from runtime.errors import BatonError, Unavailable
from runtime.wire.errors import CODE_KEY, from_status

# What grpc.aio says of a write to a call whose end it has not read yet, whatever it ended with.
_CALL_ENDED = (grpc.StatusCode.INTERNAL, "Internal error from Core")
T = TypeVar("T")


def failure(error: grpc.aio.AioRpcError) -> BatonError:
    return _error(error.code(), error.details(), error.trailing_metadata())


async def told(call: grpc.aio.StreamStreamCall[Any, Any], operation: Awaitable[T]) -> T:
    """The outcome of an operation on a stream, with errors of ours. A stream that ended well is gone nevertheless."""
    try:
        return await operation
    except grpc.aio.AioRpcError as error:
        raise failure(error) from error
    except asyncio.InvalidStateError as error:  # how a write says that the call is over
        code = await call.code()
        if code is grpc.StatusCode.OK:
            raise Unavailable("the other end has ended the stream") from error
        raise _error(code, await call.details(), await call.trailing_metadata()) from error


def _error(code: grpc.StatusCode, details: str | None, metadata: object) -> BatonError:
    if (code, details) == _CALL_ENDED:
        return Unavailable("the stream broke")
    # Pairs, which the stubs of grpc call something else.
    pairs = tuple(cast("Iterable[tuple[str, str | bytes]]", metadata or ()))
    if code is grpc.StatusCode.CANCELLED and CODE_KEY not in dict(pairs):
        # Whoever cancels here gets a CancelledError: it was the other end, which stops.
        return Unavailable("the other end has cancelled the call")
    return from_status(code.name, details or "", pairs)
