"""A receiver of shared memory with few slots, writers beside it, and landings that remember."""

import asyncio
import json
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pytest

from runtime.domain.landing import LandingEvent
from runtime.domain.staging import SlotState
from runtime.ids import TransferId
from runtime.kv.transport.arrivals import OpenTransfers
from runtime.kv.transport.shm import words as w
from runtime.kv.transport.shm.packets import Connection, connect
from runtime.kv.transport.shm.receiving import ShmReceiver
from runtime.kv.transport.shm.sending import ShmWriters
from tests.kv.shm.writing import Job
from tests.kv.test_frames import CODEC
from tests.kv.test_grpc_transport import Landing

SLOTS = 4


class Raw:
    """A writer by hand: says what a test says, and collects the answers."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.heard: asyncio.Queue[w.Word] = asyncio.Queue()
        self.ended = asyncio.Event()

    async def ask(self, word: w.Word) -> w.Word:
        self.connection.send(w.pack(word))
        return await self.answer()

    async def answer(self) -> w.Word:
        async with asyncio.timeout(10):
            return await self.heard.get()

    async def greet(self) -> None:
        self.connection.send(w.pack(w.Hello(w.VERSION, CODEC.fingerprint, CODEC.max_bytes)))
        packet, descriptor = await self.connection.receive_descriptor()
        assert descriptor is not None
        assert isinstance(w.unpack(packet), w.Arena)
        os.close(descriptor)
        self.connection.start(lambda packet: self.heard.put_nowait(w.unpack(packet)), self.ended.set)


class Side:
    """A decode worker as far as shared memory goes."""

    def __init__(self) -> None:
        self.transfers = OpenTransfers(CODEC)
        endpoint = f"baton-test-{secrets.token_hex(8)}"
        self.receiver = ShmReceiver(CODEC, self.transfers, endpoint, SLOTS * CODEC.max_bytes)
        self.writers = ShmWriters(CODEC)
        self._raw: list[Connection] = []

    def expect(self, transfer: str, pages: int = 2) -> Landing:
        landing = Landing()
        self.transfers.open(TransferId(transfer), 1, pages, landing)
        return landing

    def counts(self) -> tuple[int, int, int]:
        """Free, granted and quarantined slots."""
        found = self.receiver.staging.counts()
        return found[SlotState.FREE], found[SlotState.GRANTED], found[SlotState.QUARANTINED]

    async def raw(self) -> Raw:
        raw = Raw(connect(self.receiver.endpoint))
        self._raw.append(raw.connection)
        await raw.greet()
        return raw

    async def fence(self, transfer: str) -> None:
        self.transfers.close(transfer)
        await self.receiver.fence(TransferId(transfer))

    def close(self) -> None:
        for connection in self._raw:
            connection.close()
        self.writers.close()
        self.receiver.close()


@pytest.fixture
async def side() -> AsyncIterator[Side]:
    side = Side()
    try:
        yield side
        side.receiver.staging.check()
    finally:
        side.close()


@contextmanager
def writer_process(job: Job) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "tests.kv.shm.writing", json.dumps(asdict(job))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def kinds(events: list[LandingEvent]) -> list[str]:
    return [type(event).__name__ for event in events]
