"""One part of a mesh as a process of its own, without Ray: `python -m runtime.cli.bench.host JSON`.

Prints where it listens once it serves, and serves until its standard input ends.
"""

import asyncio
import json
import logging
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

from runtime.cli.bench.hosted import hosted
from runtime.config import Config, parse_config
from runtime.errors import SetupError
from runtime.ids import Ids, WorkerId
from runtime.mesh.controller import controller_process
from runtime.mesh.gateway import gateway_process
from runtime.mesh.http import http_server
from runtime.mesh.tenants import open_tenants
from runtime.mesh.worker import worker_process

_START_S = 120.0
_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Part:
    """`kind` is controller, gateway or worker; the latter two need the `controller`'s address, a worker its name."""

    config: dict[str, Any]
    kind: str
    controller: str = ""
    worker: str = ""


def host(config: Config, kind: str, controller: str = "", worker: str = "") -> AbstractContextManager[dict[str, str]]:
    """Host a part; yields where it listens, by protocol, and its `pid`."""
    part = Part(config.model_dump(mode="json"), kind, controller, worker)
    return hosted(__name__, asdict(part), start_s=_START_S)


@asynccontextmanager
async def _controller(config: Config, _part: Part) -> AsyncIterator[dict[str, str]]:
    async with controller_process(config, 1, _HOST, 0) as controller:
        yield {"grpc": controller.address}


@asynccontextmanager
async def _gateway(config: Config, part: Part) -> AsyncIterator[dict[str, str]]:
    gateway, tenants = config.gateway, open_tenants(config.state, config.access.tenants)
    async with (
        gateway_process(config, part.controller, port=gateway.grpc_port, tenants=tenants) as running,
        http_server(running.app, gateway.host, gateway.http_port) as port,
    ):
        yield {"grpc": f"{gateway.host}:{running.port}", "http": f"http://{gateway.host}:{port}"}


@asynccontextmanager
async def _worker(config: Config, part: Part) -> AsyncIterator[dict[str, str]]:
    boot = Ids(random.SystemRandom()).boot()
    tenants = open_tenants(config.state, config.access.tenants)
    async with worker_process(config, WorkerId(part.worker), boot, part.controller, tenants, _HOST) as running:
        yield {"grpc": running.worker.address}


_KINDS = {"controller": _controller, "gateway": _gateway, "worker": _worker}


async def _serve(part: Part) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, stopped.set)
    async with _KINDS[part.kind](parse_config(part.config, "bench"), part) as listening:
        sys.stdout.write(json.dumps(listening | {"pid": str(os.getpid())}) + "\n")
        sys.stdout.flush()
        await stopped.wait()


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    try:
        uvloop.run(_serve(Part(**json.loads(sys.argv[1]))))
    except SetupError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
