"""A gateway in a process of its own that kills itself with SIGKILL at a named point: `python -m` with its arguments.

A point is `before`, `within` or `after`, the store's call, and which one of its kind: `after append 3`. Its clock may
be wrong by some seconds.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from runtime.config import Config
from runtime.mesh import gateway, sessions
from runtime.session_store import SessionStore
from runtime.store import opening, running


class CrashingStore:
    def __init__(self, store: SessionStore, when: str, call: str, number: int) -> None:
        self._store = store
        self._when = when
        self._call = call
        self._left = number

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._store, name)
        if name != self._call:
            return cast("Callable[..., Awaitable[Any]]", method)

        async def called(*arguments: object) -> object:
            self._left -= 1
            if not self._left and self._when == "before":
                die()
            result = await method(*arguments)
            if not self._left and self._when == "after":
                die()
            return result

        return called


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_within(call: str) -> None:
    """In the middle of the transaction that opens or ends a turn."""
    module, inner = (running, "_commit") if call == "finish" else (opening, "_occupy")
    done = getattr(module, inner)

    async def dying(*arguments: object) -> None:
        await done(*arguments)
        die()

    setattr(module, inner, dying)


def mistake_the_time(skew_s: float) -> None:
    """The wall's; what is waited for is measured by another clock."""
    told, told_ns = time.time, time.time_ns
    vars(time).update(time=lambda: told() + skew_s, time_ns=lambda: told_ns() + round(skew_s * 1e9))


async def main(config: str, controller: str, port: str, point: str, skew_s: str) -> None:
    mistake_the_time(float(skew_s))
    when, call, number = point.split() if point else ("never", "", "0")
    kept = sessions.session_store

    @asynccontextmanager
    async def crashing(config: Config) -> AsyncIterator[SessionStore]:
        async with kept(config) as store:
            yield cast("SessionStore", CrashingStore(cast("SessionStore", store), when, call, int(number)))

    vars(gateway)["session_store"] = crashing
    if when == "within":
        die_within(call)
    async with gateway.gateway_process(Config.model_validate_json(config), controller, port=int(port)):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
