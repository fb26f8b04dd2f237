"""What goes out on the connection, and when a response begins."""

from collections.abc import MutableMapping
from typing import Any

import pytest

from runtime.errors import Unavailable
from runtime.services.openai.body import ClientGone
from runtime.services.openai.exchange import Exchange


async def silent() -> MutableMapping[str, Any]:
    raise AssertionError("nothing is to be read")


async def test_text_that_is_held_back_does_not_begin_a_response() -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    exchange = Exchange({"type": "http", "headers": []}, silent, send)
    exchange.add("")
    await exchange.flush()
    assert sent == []
    await exchange.fail(Unavailable("gone"))
    assert sent[0]["status"] == 503


async def test_a_server_that_cannot_send_says_that_the_client_is_gone() -> None:
    async def send(message: MutableMapping[str, Any]) -> None:
        raise BrokenPipeError

    exchange = Exchange({"type": "http", "headers": []}, silent, send)
    exchange.add("data: 1\n\n")
    with pytest.raises(ClientGone):
        await exchange.flush()
