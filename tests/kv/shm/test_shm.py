"""Shared memory between two ends in one process: what lands, what is refused, what is given back."""

import asyncio
import os
import random
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.domain.landing import CommitArrived, FrameArrived, FrameCorrupt, SenderAborted
from runtime.errors import DeadlineExceeded, Incompatible, InvalidArgument, ResourceExhausted, StaleAttempt, Unavailable
from runtime.ids import TransferId
from runtime.kv.frames import HEADER_BYTES, FrameCodec
from runtime.kv.transport.shm import words as w
from runtime.kv.transport.shm.arena import Arena
from runtime.kv.transport.shm.packets import MOST_WAITING, Connection, connect
from runtime.kv.transport.shm.sending import ShmWriters
from tests.kv.shm.conftest import SLOTS, Side, kinds
from tests.kv.shm.writing import frame, ticket
from tests.kv.test_frames import CODEC, SPEC
from tests.kv.test_grpc_transport import Landing
from tests.scale import scaled

ONE = TransferId("one")


async def test_many_frames_land_in_order_through_few_slots(side: Side) -> None:
    landing = side.expect("one")
    async with side.writers.open(ticket("one"), side.receiver.endpoint) as sender:
        for index in range(50):
            await sender.send(frame(index, bytes([index])))
        await sender.commit()
    assert landing.events == [
        *(FrameArrived(ONE, 1, frame(index, bytes([index])), "shm") for index in range(50)),
        CommitArrived(ONE, 1, 50),
    ]
    assert side.counts() == (SLOTS, 0, 0)
    assert len(side.transfers) == 0


async def test_one_connection_serves_many_transfers_at_once(side: Side) -> None:
    async def push(name: str) -> Landing:
        landing = side.expect(name, pages=1)
        async with side.writers.open(ticket(name), side.receiver.endpoint) as sender:
            for index in range(5):
                await sender.send(frame(index))
                await asyncio.sleep(0)
            await sender.commit()
        return landing

    async with asyncio.TaskGroup() as group:
        pushes = [group.create_task(push(name)) for name in ("one", "other")]
    assert [len(push.result().events) for push in pushes] == [6, 6]
    assert len(side.receiver._writers) == 1


async def test_a_frame_damaged_in_its_slot_is_counted_and_the_next_lands(side: Side) -> None:
    landing, raw = side.expect("one"), await side.raw()
    granted = await raw.ask(w.Open(1, 1, "one"))
    assert isinstance(granted, w.Granted)
    slot = granted.slots[0]
    memory = side.receiver.arena.slot(slot)
    length = CODEC.place(frame(0), memory)
    memory[HEADER_BYTES + 3] ^= 1
    assert await raw.ask(w.Placed(1, slot, length)) == w.Taken(1, slot)
    assert CODEC.place(frame(0), memory) == length
    del memory
    assert await raw.ask(w.Placed(1, slot, length)) == w.Taken(1, slot)
    assert await raw.ask(w.Commit(1, 2)) == w.Committed(1)
    assert kinds(landing.events) == ["FrameCorrupt", "FrameArrived", "CommitArrived"]
    assert side.transfers.refused == {"checksum": 1}


@pytest.mark.parametrize(("transfer", "epoch", "reason"), [("other", 1, "not open here"), ("one", 2, "not 2")])
async def test_a_transfer_that_is_not_open_is_refused_and_the_connection_stays(
    side: Side, transfer: str, epoch: int, reason: str
) -> None:
    side.expect("one")
    raw = await side.raw()
    refused = await raw.ask(w.Open(1, epoch, transfer))
    assert isinstance(refused, w.Refused)
    assert reason in refused.reason
    assert isinstance(await raw.ask(w.Open(2, 1, "one")), w.Granted)
    assert sum(side.transfers.refused.values()) == 1


async def test_a_second_writer_of_a_transfer_is_refused(side: Side) -> None:
    side.expect("one")
    first, second = await side.raw(), await side.raw()
    assert isinstance(await first.ask(w.Open(1, 1, "one")), w.Granted)
    assert isinstance(await second.ask(w.Open(1, 1, "one")), w.Refused)


async def test_what_is_not_within_the_grant_is_refused_and_nothing_lands(
    side: Side, caplog: pytest.LogCaptureFixture
) -> None:
    landing, raw = side.expect("one"), await side.raw()
    granted = await raw.ask(w.Open(1, 1, "one"))
    assert isinstance(granted, w.Granted)
    foreign = next(slot for slot in range(SLOTS) if slot not in granted.slots)
    for word in (
        w.Placed(1, foreign, CODEC.max_bytes),
        w.Placed(1, 2**32 - 1, CODEC.max_bytes),
        w.Placed(1, granted.slots[0], 2**32 - 1),
        w.Placed(1, granted.slots[0], 0),
        w.Placed(7, granted.slots[0], CODEC.max_bytes),
        w.Open(1, 1, "one"),
        w.Stop(1),
    ):
        raw.connection.send(w.pack(word))
    raw.connection.send(b"\xff\x00")
    assert await raw.ask(w.Commit(1, 0)) == w.Committed(1)
    assert landing.events == [CommitArrived(ONE, 1, 0)]
    assert side.transfers.refused == {"packet": 8}
    assert len(caplog.records) == 1, "a writer cannot fill the log"


@pytest.mark.parametrize("dies", [True, False])
async def test_who_asks_and_never_reads_is_not_listened_to_until_it_does(side: Side, dies: bool) -> None:
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asking.connect(f"\0{side.receiver.endpoint}")
    asking.setblocking(False)
    asking.send(w.pack(w.Hello(w.VERSION, CODEC.fingerprint, CODEC.max_bytes)))
    said = 0

    async def say(most: int) -> None:
        nonlocal said
        refused = 0
        while said < most and refused < 100:
            try:
                asking.send(w.pack(w.Open(said, 1, "unknown")))
                said, refused = said + 1, 0
            except BlockingIOError:
                refused += 1
            await asyncio.sleep(0)

    await say(3 * MOST_WAITING)
    (writer,) = side.receiver._writers
    assert len(writer._connection._waiting) <= MOST_WAITING
    assert said < 3 * MOST_WAITING
    heard = 0
    while heard < said + 1 and not dies:
        with suppress(BlockingIOError):
            heard += bool(asking.recv(4096))
        await asyncio.sleep(0)
    await say(said + 1)
    await asyncio.sleep(0.01)
    assert dies or asking.recv(4096), "it is listened to again"
    asking.close()
    await asyncio.sleep(0.05)
    assert not side.receiver._writers, "its end is heard"


@pytest.mark.parametrize(
    "hello",
    [w.Hello(w.VERSION, bytes(16), CODEC.max_bytes), w.Hello(w.VERSION + 1, CODEC.fingerprint, CODEC.max_bytes)],
    ids=["another model", "another version"],
)
async def test_a_writer_of_another_model_or_version_gets_no_memory(side: Side, hello: w.Hello) -> None:
    connection = connect(side.receiver.endpoint)
    connection.send(w.pack(hello))
    packet, descriptor = await connection.receive_descriptor()
    connection.close()
    assert isinstance(w.unpack(packet), w.Declined)
    assert descriptor is None


async def test_who_did_not_say_hello_is_granted_nothing(side: Side) -> None:
    side.expect("one")
    connection = connect(side.receiver.endpoint)
    connection.send(w.pack(w.Open(1, 1, "one")))
    connection.send(w.pack(w.Hello(w.VERSION, CODEC.fingerprint, CODEC.max_bytes)))
    packet, descriptor = await connection.receive_descriptor()
    connection.close()
    assert isinstance(w.unpack(packet), w.Arena), "the first that it hears"
    assert descriptor is not None
    os.close(descriptor)
    assert side.transfers.refused == {"packet": 1}


async def test_a_frame_that_no_slot_holds_is_not_written(side: Side) -> None:
    landing = side.expect("one")
    wide = replace(SPEC, page_tokens=8 * SPEC.page_tokens)
    writers = ShmWriters(FrameCodec(wide))
    large = replace(frame(0), valid_tokens=wide.page_tokens, payload=bytes(wide.page_bytes))
    try:
        async with writers.open(ticket("one"), side.receiver.endpoint) as sender:
            with pytest.raises(Incompatible, match="more than the receiver's slots hold"):
                await sender.send(large)
    finally:
        writers.close()
    assert landing.of(FrameArrived) == []


async def test_a_writer_unmaps_before_its_socket_ends(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the socket is what tells the receiver that nothing can be written any more."""
    done: list[str] = []
    ends: tuple[tuple[Any, str], ...] = ((Arena, "unmapped"), (Connection, "socket ended"))
    for kind, name in ends:

        def closing(closed: object, close: Callable[[object], None] = kind.close, name: str = name) -> None:
            done.append(name)
            close(closed)

        monkeypatch.setattr(kind, "close", closing)
    side.expect("one")
    async with side.writers.open(ticket("one"), side.receiver.endpoint):
        side.writers.close()
    assert done[:2] == ["unmapped", "socket ended"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_a_process_of_another_user_gets_no_memory(side: Side) -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(Unavailable, match="another user"):
            connect(side.receiver.endpoint)
    finally:
        os.seteuid(0)


async def test_without_a_free_slot_the_transfer_has_to_go_another_way(side: Side) -> None:
    for name in ("one", "two"):
        side.expect(name)
        raw = await side.raw()
        assert isinstance(await raw.ask(w.Open(1, 1, name)), w.Granted)
    landing = side.expect("three")
    with pytest.raises(ResourceExhausted, match="0 free, 4 granted, 0 quarantined"):
        async with side.writers.open(ticket("three"), side.receiver.endpoint):
            pass
    assert landing.events == [], "and it stays open for that other way"
    assert len(side.transfers) == 3


async def test_no_writer_has_more_than_half_of_the_slots(side: Side) -> None:
    side.expect("one")
    side.expect("two")
    raw = await side.raw()
    assert isinstance(await raw.ask(w.Open(1, 1, "one")), w.Granted)
    assert isinstance(await raw.ask(w.Open(2, 1, "two")), w.NoRoom)


async def test_an_abort_is_told_and_the_slots_come_back(side: Side) -> None:
    landing = side.expect("one")
    async with side.writers.open(ticket("one"), side.receiver.endpoint) as sender:
        await sender.send(frame(0))
    await landing.wait_for(SenderAborted)
    assert kinds(landing.events) == ["FrameArrived", "SenderAborted"]
    assert side.counts() == (SLOTS, 0, 0)


async def test_a_fence_ends_the_sender_and_frees_the_slots(side: Side) -> None:
    landing = side.expect("one")
    async with side.writers.open(ticket("one"), side.receiver.endpoint) as sender:
        await sender.send(frame(0))
        await landing.wait_for(FrameArrived)
        await side.fence("one")
        assert side.counts() == (SLOTS, 0, 0)
        with pytest.raises(StaleAttempt):
            await sender.send(frame(1))
    assert kinds(landing.events) == ["FrameArrived"]


async def test_a_commit_that_crosses_the_fence_is_refused_and_fences(side: Side) -> None:
    landing, raw = side.expect("one"), await side.raw()
    await raw.ask(w.Open(1, 1, "one"))
    fencing = asyncio.get_running_loop().create_task(side.fence("one"))
    assert await raw.answer() == w.Stop(1)
    assert isinstance(await raw.ask(w.Commit(1, 0)), w.Refused)
    await fencing
    assert side.counts() == (SLOTS, 0, 0)
    assert landing.events == []


async def test_a_receiver_that_ends_is_unavailable_promptly(side: Side) -> None:
    gone = Side()
    gone.expect("one")
    async with gone.writers.open(ticket("one"), gone.receiver.endpoint) as sender:
        gone.receiver.close()
        with pytest.raises(Unavailable):
            await sender.commit()
    gone.writers.close()
    with pytest.raises(Unavailable, match="not on this host"):
        async with side.writers.open(ticket("one"), gone.receiver.endpoint):
            pass


async def test_the_deadline_ends_a_transfer_whose_receiver_hangs(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    side.expect("one")
    monkeypatch.setattr(side.receiver.transfers, "land", lambda *_: None)
    monkeypatch.setattr("runtime.kv.transport.shm.receiving.w.Taken", lambda *_: w.Granted(0, ()))
    async with side.writers.open(replace(ticket("one"), remaining_ms=200), side.receiver.endpoint) as sender:
        await sender.send(frame(0))
        with pytest.raises(DeadlineExceeded):
            await sender.commit()


async def test_aborting_at_random_points_leaves_every_slot_free(side: Side) -> None:
    source = random.Random(4)

    async def one(name: str) -> None:
        landing = side.expect(name, pages=source.randint(1, 3))
        try:
            async with side.writers.open(ticket(name), side.receiver.endpoint) as sender:
                for index in range(source.randint(0, 4)):
                    await sender.send(frame(index))
                if source.random() < 0.5:
                    await side.fence(name)
                if source.random() < 0.3:
                    await sender.commit()
        except (StaleAttempt, ResourceExhausted):
            pass
        finally:
            await side.fence(name)
        assert FrameCorrupt not in map(type, landing.events)

    for start in range(0, scaled(400, 10_000), 8):
        async with asyncio.TaskGroup() as group:
            for number in range(start, start + 8):
                group.create_task(one(f"xfer-{number}"))
    assert side.counts() == (SLOTS, 0, 0)
    assert side.receiver.writing() == len(side.transfers) == 0


async def test_a_receiver_leaves_neither_files_nor_names_nor_descriptors() -> None:
    before = traces()
    for _ in range(3):
        side = Side()
        side.expect("one")
        async with side.writers.open(ticket("one"), side.receiver.endpoint) as sender:
            await sender.send(frame(0))
        side.close()
    assert traces() == before


def traces() -> tuple[set[Path], int, bool]:
    """Named shared memory, how many descriptors are open, and whether a socket of ours has a name."""
    sockets = Path("/proc/net/unix").read_text()
    return set(Path("/dev/shm").iterdir()), len(list(Path("/proc/self/fd").iterdir())), "baton-test" in sockets


PACKETS = st.binary(max_size=64) | st.builds(
    lambda kind, rest: bytes([kind]) + rest, st.integers(0, 12), st.binary(max_size=40)
)


@given(packet=PACKETS)
def test_any_bytes_are_a_word_or_are_refused(packet: bytes) -> None:
    with suppress(InvalidArgument):
        word = w.unpack(packet)
        assert w.unpack(w.pack(word)) == word


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=scaled(60, 2000))
@given(packets=st.lists(st.binary(min_size=1, max_size=40), max_size=8))
async def test_whatever_a_writer_says_no_slot_is_lost(packets: list[bytes]) -> None:
    side = Side()
    try:
        side.expect("one")
        raw = await side.raw()
        await raw.ask(w.Open(1, 1, "one"))
        for packet in packets:
            raw.connection.send(packet)
        raw.connection.send(w.pack(w.Open(99, 1, f"none-{secrets.token_hex(4)}")))
        while not (isinstance(word := await raw.answer(), w.Refused) and word.handle == 99):
            pass
        side.receiver.staging.check()
        raw.connection.close()
        await side.fence("one")
        assert side.counts() == (SLOTS, 0, 0)
    finally:
        side.close()
