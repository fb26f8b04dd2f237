"""The body of a request: bytes to a validated request. Reads no more than allowed, and says which field is at fault."""

import json
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from runtime.errors import BatonError, InvalidArgument, NotSupported, TooLarge
from runtime.services.openai.fields import NOT_SUPPORTED

R = TypeVar("R", bound=BaseModel)
_SHOWN = 40


class ClientGone(Exception):
    """The client closed its connection: there is nobody to answer."""


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Raises `TooLarge` as soon as more than `limit` bytes are announced or came."""
    announced = Headers(scope=scope).get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit, f"{announced} bytes")
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit, "more")
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _too_large(limit: int, sent: str) -> TooLarge:
    return TooLarge(f"the body may have at most {limit} bytes, this one has {sent}", field="body")


def parse_body(kind: type[R], body: bytes) -> R:
    """Raises `InvalidArgument` naming the first field at fault, `NotSupported` if that is only not supported yet."""
    try:
        content = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidArgument(f"the body is not JSON in UTF-8: {error}", field="body") from error
    if not isinstance(content, dict):
        raise InvalidArgument("the body must be a JSON object", field="body")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)[0]) from error


def _refusal(detail: ErrorDetails) -> BatonError:
    field = _path(detail["loc"])
    match detail["type"]:
        case "extra_forbidden":
            return InvalidArgument(f"unknown field {field}", field=field)
        case "missing":
            return InvalidArgument(f"{field} is required", field=field)
        case kind if kind == NOT_SUPPORTED:
            return NotSupported(f"{field} {detail['msg']}", field=field)
        case _:
            rule = detail["msg"].replace("Input should be", "must be")
            return InvalidArgument(f"{field} {rule}{_shown(detail['input'])}", field=field)


def _path(loc: tuple[int | str, ...]) -> str:
    """`messages[0].content`, as OpenAI writes it."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return path.removeprefix(".")[:256]


def _shown(value: object) -> str:
    """What was sent instead, where it is short: never a conversation."""
    if value is None or isinstance(value, bool | int | float):
        return f", got {json.dumps(value)[:_SHOWN]}"
    return ""
