"""Fuzzes what takes bytes from elsewhere, for as long as one likes: `python -m tests.kv.fuzzing SECONDS`.

Frames and parts of frames, pushes at a real server, and words at the socket of shared memory: what is in `corpus/`,
changed in every way. Whatever comes is refused by a reason of ours or taken, nothing is kept, and the next one works.
"""

import asyncio
import logging
import random
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from batonmesh.v1 import kv_pb2
from runtime.domain.landing import FrameArrived, FrameCorrupt
from runtime.domain.steps import Encoding
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.arrivals import OpenTransfers
from runtime.kv.transport.shm import words as w
from tests.kv.shm.conftest import SLOTS
from tests.kv.shm.conftest import Side as ShmSide
from tests.kv.test_fuzz import GOOD, OPEN_PAGES, REASONS, WIDE
from tests.kv.test_grpc_transport import TRANSFER, Landing, expect, side

CORPUS = Path(__file__).parent / "corpus"
ROUND = 200
_ENDS = (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
_NUMBERS = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def corpus(name: str) -> tuple[bytes, ...]:
    """What is in a file of the corpus, a line of hexadecimal digits each."""
    return tuple(bytes.fromhex(line) for line in (CORPUS / f"{name}.hex").read_text().splitlines())


@st.composite
def changed(draw: st.DrawFn, known: Sequence[bytes]) -> bytes:
    """Something known with up to four changes."""
    data = draw(st.sampled_from(known))
    for _ in range(draw(st.integers(0, 4))):
        place, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        match draw(st.integers(0, 5)):
            case 0:
                data = data[:place] + data[end:]
            case 1:
                data = data[:end] + data[place:]
            case 2:
                data = data[:place] + draw(st.binary(max_size=40)) + data[place:]
            case 3:
                data = (
                    data[:place]
                    + bytes(byte ^ draw(st.integers(0, 255)) for byte in data[place : place + 3])
                    + data[place + 3 :]
                )
            case 4:
                form = draw(st.sampled_from(("<B", "<H", "<I", "<Q")))
                size = struct.calcsize(form)
                number = draw(st.sampled_from(_NUMBERS)) % (1 << 8 * size)
                data = data[:place] + struct.pack(form, number) + data[place + size :]
            case _:
                data = data[:place] + draw(st.sampled_from(known))[place:]
    return data


def _fuzz(strategy: st.SearchStrategy[Any], judge: Callable[[Any], None]) -> None:
    """One round."""
    how = settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    how(given(strategy)(judge))()


def frames() -> None:
    def judge(pushed: list[bytes]) -> None:
        transfers, landing = OpenTransfers(FrameCodec(WIDE, Encoding.FP8, ("bfloat16", "float16"))), Landing()
        transfers.open(TRANSFER, 1, OPEN_PAGES, landing)
        found = transfers.find(TRANSFER, 1)
        good = [transfers.land(found, data, "grpc") for data in pushed]
        assert set(transfers.refused) <= REASONS
        assert sum(transfers.refused.values()) == good.count(False) == len(landing.of(FrameCorrupt))
        assert len(found.parts) <= OPEN_PAGES

    _fuzz(st.lists(changed(corpus("frames")), min_size=1, max_size=6), judge)


@dataclass
class Servers:
    """What stays open over many rounds, on a loop that runs while something is asked."""

    run: Callable[[Awaitable[None]], None]
    receiver: Any
    channel: grpc.aio.Channel

    def pushes(self) -> None:
        _fuzz(st.lists(changed(corpus("pushes")), min_size=1, max_size=4), lambda pushed: self.run(self._push(pushed)))

    def words(self) -> None:
        _fuzz(st.lists(changed(corpus("words")), min_size=1, max_size=8), lambda said: self.run(_say(said)))

    async def _push(self, pushed: list[bytes]) -> None:
        landing, transport = Landing(), self.receiver.transport
        expect(self.receiver, landing)
        call: Any = self.channel.stream_stream("/batonmesh.v1.Kv/Push", None, None)(None, timeout=60)
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for data in pushed:
                await call.write(data)
            await call.done_writing()
            while isinstance(await call.read(), bytes):
                pass
        ended = (await call.code(), await call.details())
        assert ended[0] in _ENDS or ended[1] == "Internal error from Core", ended
        await transport.fence(TRANSFER)
        again = Landing()
        expect(self.receiver, again, epoch=9)
        call = self.channel.stream_stream("/batonmesh.v1.Kv/Push", None, None)(None, timeout=60)
        good = kv_pb2.PushRequest(transfer=TRANSFER, epoch=9, frames=[GOOD])
        await call.write(good.SerializeToString())
        await call.read()
        assert [type(event) for event in again.events] == [FrameArrived]
        await transport.fence(TRANSFER)
        call.cancel()
        assert transport.receiving() == 0
        assert set(transport.transfers.refused) <= REASONS


async def _say(said: list[bytes]) -> None:
    memory = ShmSide()
    try:
        memory.expect("one")
        raw = await memory.raw()
        await raw.ask(w.Open(1, 1, "one"))
        for packet in said:
            if packet:
                raw.connection.send(packet[: w.MAX_BYTES])
        raw.connection.send(w.pack(w.Open(2**31, 1, "nobody's, and the last that is asked")))
        while not (isinstance(word := await raw.answer(), w.Refused) and word.handle == 2**31):
            pass
        raw.connection.close()
        await memory.fence("one")
        memory.receiver.staging.check()
        assert memory.counts() == (SLOTS, 0, 0)
    finally:
        memory.close()


def fuzz(seconds: float) -> int:
    """How many were tried. Raises what was found, made small."""
    ends, rounds = time.monotonic() + seconds, 0
    # A writer that says nonsense is told of each time.
    logging.disable(logging.WARNING)
    with asyncio.Runner() as runner:
        opened = side()
        receiver = runner.run(opened.__aenter__())
        channel = runner.run(_connected(f"127.0.0.1:{receiver.server.port}"))
        servers = Servers(runner.run, receiver, channel)  # type: ignore[arg-type]
        try:
            while time.monotonic() < ends:
                for one in (frames, servers.pushes, servers.words):
                    one()
                    rounds += 1
        finally:
            runner.run(channel.close(None))
            runner.run(opened.__aexit__(None, None, None))
    return rounds * ROUND


async def _connected(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address)


if __name__ == "__main__":
    random.seed()
    sys.stdout.write(f"{fuzz(float(sys.argv[1])):,} tried, nothing found\n")
