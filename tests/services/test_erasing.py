"""A session that is erased while it is decoded: nothing of it is found any more, and nothing of it comes late."""

import asyncio
import sqlite3
from collections.abc import Awaitable
from pathlib import Path

import grpc
import pytest

from batonmesh.v1 import common_pb2
from batonmesh.v1 import session_pb2 as pb
from runtime.domain.pages import extend_chain
from runtime.engine.simulated import SimulatedTokenizer
from runtime.ids import PageId, SessionId, TenantId
from runtime.mesh.local import LocalMesh
from runtime.mesh.tenants import open_tenants
from runtime.roles.decode import DecodeRole
from runtime.store.erasing import erase
from runtime.store.sealing import MasterKey
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase
from tests.services.session_mesh import Seen, User, expected, run, session_mesh
from tests.store.scanning import holding, scan

CANARY = "My dog is called Rumpelstiltskin, and nobody is to know it."
LONG = common_pb2.Sampling(max_tokens=2000, temperature=0)


def chain(mesh: LocalMesh, *texts: str) -> list[PageId]:
    """The ids of the pages that hold a conversation of these texts."""
    tokens, tokenizer = list[int](), SimulatedTokenizer()
    for text, answer in zip(texts, expected(*texts), strict=True):
        message: dict[str, object] = {"role": "user", "content": text}
        tokens += tokenizer.render_delta([], [message]) if tokens else tokenizer.render_chat([message])
        tokens += answer
    (salt,) = open_tenants(mesh.config.state, ("default",)).values()
    spec = next(iter(mesh.workers.values())).engine.spec
    return extend_chain([], salt, tokens, spec.page_tokens, spec.kv_fingerprint)


def resident(mesh: LocalMesh, ids: list[PageId]) -> dict[str, int]:
    """How many leading pages of these each worker has."""
    return {name: found for name, worker in mesh.workers.items() if (found := worker.engine.match(ids))}


async def decoding(user: User, session: str) -> "tuple[Seen, asyncio.Task[Seen]]":
    seen = Seen()
    reading = asyncio.get_running_loop().create_task(user.run(session, CANARY, seen, sampling=LONG))
    async with asyncio.timeout(20):
        while len(seen.tokens) < 20:  # noqa: ASYNC110 - what comes is a stream's matter
            await asyncio.sleep(0.01)
    return seen, reading


def data_key(state: Path, master: MasterKey, session: str) -> tuple[bytes, bytes]:
    """As it is, and as it is kept."""
    with sqlite3.connect(f"file:{state / 'sessions.sqlite'}?mode=ro", uri=True) as connection:
        (wrapped,) = connection.execute("SELECT wrapped FROM session_keys WHERE session = ?", (session,)).fetchone()
    connection.close()
    return master.unwrap(SessionId(session), wrapped), wrapped


async def refused(call: Awaitable[object]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code()


async def test_a_session_erased_while_it_decodes_is_nowhere(tmp_path: Path) -> None:
    """Invariant 13. The same looks find all of it before."""
    state = tmp_path / "state"
    async with session_mesh(state, base_ms=2.0) as (mesh, user):
        session = await user.create()
        await user.run(session, CANARY)
        seen, reading = await decoding(user, session)
        ids = chain(mesh, CANARY)
        master = MasterKey((state / "sessions.key").read_bytes())
        key, wrapped = data_key(state, master, session)
        assert {"items.payload", "segments.tokens", "turns.prompt"} <= scan(state, CANARY, master)
        assert holding(state, wrapped)
        assert {name.split("-")[0] for name in resident(mesh, ids)} == {"prefill", "decode"}

        erased = await user.stub.Erase(pb.EraseRequest(session=session), timeout=20)

        assert await refused(reading) is grpc.StatusCode.NOT_FOUND
        given = len(seen.tokens)
        assert given < LONG.max_tokens
        assert scan(state, CANARY, master) == set()
        assert holding(state, key) | holding(state, wrapped) == set()
        assert resident(mesh, ids) == {}
        store, *workers = erased.receipts
        assert (store.store, store.done, store.erased > 10) == ("sessions", True, True)
        assert {each.store: each.done for each in workers} == dict.fromkeys(mesh.workers, True)
        assert sum(each.erased for each in workers) >= len(ids)
        assert not any(
            role.running() for worker in mesh.workers.values() if isinstance(role := worker.role, DecodeRole)
        )
        mesh.check()
        again = await user.stub.Erase(pb.EraseRequest(session=session), timeout=20)
        assert again == erased


async def test_no_call_gives_anything_of_an_erased_session(tmp_path: Path) -> None:
    async with session_mesh(tmp_path / "state") as (_, user):
        session, other = await user.create(), await user.create()
        turn = (await user.run(session)).end.id
        await user.run(other)
        await user.stub.Erase(pb.EraseRequest(session=session), timeout=20)
        calls = (
            user.stub.GetSession(pb.GetSessionRequest(session=session)),
            user.stub.ListItems(pb.ListItemsRequest(session=session)),
            user.stub.Fork(pb.ForkRequest(session=session, name="other")),
            user.stub.Rollback(pb.RollbackRequest(session=session)),
            user.stub.CancelTurn(pb.CancelTurnRequest(session=session, turn=turn)),
            user.stub.DeleteSession(pb.DeleteSessionRequest(session=session)),
            user.stub.ResumeTurn(pb.ResumeTurnRequest(session=session, turn=turn)).read(),
            user.stub.RunTurn(run(session)).read(),
            user.stub.Export(pb.ExportRequest(session=session)).read(),
            user.stub.Erase(pb.EraseRequest(session="sess-unknown")),
        )
        assert [await refused(call) for call in calls] == [grpc.StatusCode.NOT_FOUND] * len(calls)
        listed = await user.stub.ListSessions(pb.ListSessionsRequest())
        assert [each.id for each in listed.sessions] == [other]


async def test_what_another_session_has_used_as_well_stays_and_is_counted(tmp_path: Path) -> None:
    async with session_mesh(tmp_path / "state") as (mesh, user):
        session, other = await user.create(), await user.create()
        await user.run(session, CANARY)
        await user.run(session, "And then?")
        await user.run(other, CANARY)
        # The last token of an answer is computed with the next turn only.
        both, alone = chain(mesh, CANARY)[:-1], chain(mesh, CANARY, "And then?")
        erased = await user.stub.Erase(pb.EraseRequest(session=session), timeout=20)
        assert [*resident(mesh, both).values()] == [len(both)]
        assert sum(each.shared for each in erased.receipts) >= len(both)
        assert resident(mesh, alone) == resident(mesh, both)
        again = await user.run(other, "Go on.")
        assert again.end.usage.cached_tokens >= (len(both) - 1) * 8


async def test_workers_that_were_not_there_are_told_when_they_come(tmp_path: Path) -> None:
    """And take nothing of the session, whoever still sends it."""
    async with session_mesh(tmp_path / "state") as (mesh, user):
        session = await user.create()
        await user.run(session, CANARY)
        (gone,) = [name for name in mesh.workers if name.startswith("decode")][:1]
        await mesh.kill(gone)
        await user.stub.Erase(pb.EraseRequest(session=session), timeout=20)
        await mesh.start(gone)
        boot = mesh.workers[gone].worker.boot
        async with asyncio.timeout(20):
            while True:
                erased = await user.stub.Erase(pb.EraseRequest(session=session), timeout=20)
                if any(each.boot == boot and each.done for each in erased.receipts):
                    break
                await asyncio.sleep(0.05)
        role = mesh.workers[gone].role
        refusal = role._forgetting.refusal(SessionId(session))
        assert refusal is not None
        assert not refusal.status.retryable


async def test_what_a_gateway_had_no_time_to_tell_is_told_by_the_next_that_looks(tmp_path: Path) -> None:
    """The tombstone is durable, and then the gateway that wrote it is no more."""
    state = tmp_path / "state"
    async with session_mesh(state, base_ms=2.0) as (mesh, user):
        session = await user.create()
        await user.run(session, CANARY)
        _, reading = await decoding(user, session)
        ids = chain(mesh, CANARY)
        master = MasterKey((state / "sessions.key").read_bytes())
        _, wrapped = data_key(state, master, session)
        database = SqliteDatabase(state / "sessions.sqlite", master)
        await database.open()
        await database.write(lambda tx: erase(tx, TenantId("default"), SessionId(session)))
        await database.close()

        assert await refused(reading) is grpc.StatusCode.NOT_FOUND
        async with asyncio.timeout(20):
            while resident(mesh, ids):  # noqa: ASYNC110 - told by no event
                await asyncio.sleep(0.05)
            while not all(each.done for each in await receipts(user, session)):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)
        assert {each.store for each in await receipts(user, session)} == {"sessions", *mesh.workers}
        assert scan(state, CANARY, master) | holding(state, wrapped) == set()


async def receipts(user: User, session: str) -> list[pb.ErasureReceipt]:
    return [*(await user.stub.Erase(pb.EraseRequest(session=session), timeout=20)).receipts]


async def test_who_sends_no_bundle_keeps_nobody_waiting(tmp_path: Path) -> None:
    async with session_mesh(tmp_path / "state") as (_, user):
        session = await user.create()
        pieces = [
            pb.ImportRequest(data=each.data) async for each in user.stub.Export(pb.ExportRequest(session=session))
        ]
        silent = [user.stub.Import(None) for _ in range(2)]
        for call in silent:
            await call.write(pb.ImportRequest(data=b"BATON"))
        assert await refused(user.stub.Import(iter(pieces), timeout=5)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in silent:
            await call.done_writing()
            assert await refused(call) is grpc.StatusCode.INVALID_ARGUMENT
        assert await refused(user.stub.Import(iter(pieces), timeout=5)) is grpc.StatusCode.FAILED_PRECONDITION


async def test_who_reads_no_bundle_keeps_no_third_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def large(*_: object) -> bytes:
        return bytes(32 << 20)

    monkeypatch.setattr(SqlSessionStore, "read_out", large)
    async with session_mesh(tmp_path / "state") as (_, user):
        asked = pb.ExportRequest(session=await user.create())
        slow = [user.stub.Export(asked) for _ in range(2)]
        for call in slow:
            assert isinstance(await call.read(), pb.ExportResponse)
        assert await refused(user.stub.Export(asked, timeout=5).read()) is grpc.StatusCode.RESOURCE_EXHAUSTED
        slow[0].cancel()
        async with asyncio.timeout(20):
            while await answered(user.stub.Export(asked)) is None:  # noqa: ASYNC110 - told by no event
                await asyncio.sleep(0.05)


async def answered(call: "grpc.aio.UnaryStreamCall[pb.ExportRequest, pb.ExportResponse]") -> object:
    """Its first message; None when it is refused for now."""
    try:
        return await call.read()
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return None
    finally:
        call.cancel()
