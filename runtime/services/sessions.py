"""`batonmesh.v1.Sessions`: what users call by gRPC. Translates and delegates."""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, replace

import grpc

from batonmesh.v1 import session_pb2 as pb
from batonmesh.v1 import session_pb2_grpc
from runtime.domain.notices import Notice
from runtime.domain.sessions import Asked, Halt, Progress, TurnEvent, TurnRecord
from runtime.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, TooLarge
from runtime.ids import SessionId, TenantId
from runtime.pacing import let_others_run
from runtime.roles.erasing import ErasingRole
from runtime.roles.sessions import SessionRole
from runtime.roles.submitting import submit
from runtime.roles.watching import Watchers
from runtime.services.access import calling
from runtime.services.banning import banned_spellings
from runtime.services.guard import Context
from runtime.services.shown import ShownTurn
from runtime.store.bundle import MAX_BUNDLE_BYTES
from runtime.wire import fields
from runtime.wire import session as wire
from runtime.wire.erasing import pack_erasure
from runtime.wire.keeping import pack_notice, unpack_account, unpack_change
from runtime.wire.tools import pack_pending, unpack_results

_EXPORTS = 2
_IMPORTS = 2
_PIECE = 256 << 10
_CARRY_S = 300.0


@dataclass(frozen=True, slots=True)
class SessionServiceSettings:
    """`tenant` is whose sessions are that show no tenant; `deadline_s` bounds the generating of every turn."""

    tenant: TenantId
    deadline_s: float = 600.0


class SessionService(session_pb2_grpc.SessionsServicer):
    name = pb.DESCRIPTOR.services_by_name["Sessions"].full_name

    def __init__(self, role: SessionRole, erasing: ErasingRole, settings: SessionServiceSettings) -> None:
        self._role = role
        self._erasing = erasing
        self._exporting = asyncio.Semaphore(_EXPORTS)
        self._importing = asyncio.Semaphore(_IMPORTS)
        self._settings = settings
        self._watchers = Watchers(role.store)

    @property
    def _tenant(self) -> TenantId:
        """Whose call this is."""
        return calling().tenant or self._settings.tenant

    def add_to(self, server: grpc.aio.Server) -> None:
        session_pb2_grpc.add_SessionsServicer_to_server(self, server)

    async def CreateSession(self, request: pb.CreateSessionRequest, _context: Context) -> pb.SessionState:
        model = fields.name(request.model, "model", 256)
        metadata, key = dict(request.metadata), wire.unpack_key(request)
        created = await self._role.create(
            self._tenant,
            model,
            key,
            metadata=metadata,
            rerender=request.rerender,
            policies=wire.unpack_policies(request.policies),
            account=unpack_account(request),
        )
        return await self._state(created.id)

    async def GetSession(self, request: pb.GetSessionRequest, _context: Context) -> pb.SessionState:
        return await self._state(wire.unpack_session_id(request.session))

    async def ListSessions(self, request: pb.ListSessionsRequest, _context: Context) -> pb.ListSessionsResponse:
        after = wire.unpack_session_id(request.after) if request.after else None
        limit = wire.unpack_limit(request.limit)
        found = await self._role.store.list(self._tenant, after, limit)
        return pb.ListSessionsResponse(sessions=[wire.pack_session(session) for session in found])

    async def DeleteSession(self, request: pb.DeleteSessionRequest, _context: Context) -> pb.DeleteSessionResponse:
        await self._role.store.delete(self._tenant, wire.unpack_session_id(request.session))
        return pb.DeleteSessionResponse()

    async def RunTurn(self, request: pb.RunTurnRequest, context: Context) -> None:  # type: ignore[override]  # as Guard says
        session = wire.unpack_session_id(request.session)
        branch, key = wire.unpack_branch(request.branch), wire.unpack_key(request)
        asked = self._asked(request)
        if request.sampling.bad_words:
            asked = await self._banning(session, asked, request)
        turn, _ = await self._role.open(self._tenant, session, branch, asked, key)
        await self._stream(turn, None, context)

    async def ResumeTurn(self, request: pb.ResumeTurnRequest, context: Context) -> None:  # type: ignore[override]  # as Guard says
        session, turn = wire.unpack_session_id(request.session), wire.unpack_turn_id(request.turn)
        progress = await self._role.store.progress(self._tenant, session, turn, 0)
        after = request.after_seq if request.HasField("after_seq") else None
        ended = progress.turn.ending is not None
        last = len(progress.events) + ended
        if after is not None and after > last:
            raise InvalidArgument(f"after_seq is {after}, the last message so far has {last}", field="after_seq")
        if not ended or after != last:
            seen = tuple(event for event in progress.events if event.seq <= (after or 0))
            await self._stream(progress.turn, after, context, seen)

    async def CancelTurn(self, request: pb.CancelTurnRequest, _context: Context) -> pb.Turn:
        session, turn = wire.unpack_session_id(request.session), wire.unpack_turn_id(request.turn)
        how = Halt.INTERRUPT if request.keep else Halt.DISCARD
        return wire.pack_turn(await self._role.halt(self._tenant, session, turn, how))

    async def ListItems(self, request: pb.ListItemsRequest, _context: Context) -> pb.ListItemsResponse:
        session, branch = wire.unpack_session_id(request.session), wire.unpack_branch(request.branch)
        limit = wire.unpack_limit(request.limit)
        found = await self._role.store.items(self._tenant, session, branch, request.after, limit)
        return pb.ListItemsResponse(items=[wire.pack_item(*each) for each in found])

    async def Fork(self, request: pb.ForkRequest, _context: Context) -> pb.Branch:
        session, branch = wire.unpack_session_id(request.session), wire.unpack_branch(request.branch)
        at = wire.unpack_turn_id(request.turn) if request.HasField("turn") else None
        name = wire.unpack_branch(fields.name(request.name, "name", 64), "name")
        key = wire.unpack_key(request)
        return wire.pack_branch(await self._role.store.fork(self._tenant, session, branch, at, name, key))

    async def Rollback(self, request: pb.RollbackRequest, _context: Context) -> pb.Branch:
        session, branch = wire.unpack_session_id(request.session), wire.unpack_branch(request.branch)
        to = wire.unpack_turn_id(request.turn) if request.turn else None
        key = wire.unpack_key(request)
        return wire.pack_branch(await self._role.store.rollback(self._tenant, session, branch, to, key))

    async def UpdateSession(self, request: pb.UpdateSessionRequest, _context: Context) -> pb.SessionState:
        session, key, change = wire.unpack_session_id(request.session), wire.unpack_key(request), unpack_change(request)
        await self._role.store.update(self._tenant, session, change, key)
        return await self._state(session)

    async def WatchSession(self, request: pb.WatchSessionRequest, context: Context) -> None:  # type: ignore[override]  # as Guard says
        session = wire.unpack_session_id(request.session)
        after = request.after if request.HasField("after") else None
        async with aclosing(self._watchers.watch(self._tenant, session, after)) as happening:
            async for each in happening:
                if isinstance(each, Notice):
                    await context.write(pack_notice(each))
                else:
                    state = wire.pack_session(*each)
                    await context.write(pb.SessionNotice(number=state.notices, state=state))

    async def DeleteBranch(self, request: pb.DeleteBranchRequest, _context: Context) -> pb.DeleteBranchResponse:
        branch = wire.unpack_branch(fields.name(request.branch, "branch", 64))
        await self._role.store.drop_branch(self._tenant, wire.unpack_session_id(request.session), branch)
        return pb.DeleteBranchResponse()

    async def Erase(self, request: pb.EraseRequest, _context: Context) -> pb.EraseResponse:
        return pack_erasure(await self._erasing.erase(self._tenant, wire.unpack_session_id(request.session)))

    async def Export(self, request: pb.ExportRequest, context: Context) -> None:  # type: ignore[override]  # as Guard says
        # As with imports: it is in memory for as long as its client takes to read it.
        if self._exporting.locked():
            raise ResourceExhausted(f"{_EXPORTS} sessions are being exported already", retry_after_ms=1000)
        async with self._exporting:
            data = await self._role.store.read_out(self._tenant, wire.unpack_session_id(request.session))
            await _downloaded(context, data)

    async def Import(self, _requests: object, context: Context) -> pb.SessionState:
        # Each is in memory whole until it is checked, and comes as slowly as its client likes: nobody waits behind it.
        if self._importing.locked():
            raise ResourceExhausted(f"{_IMPORTS} sessions are being imported already", retry_after_ms=1000)
        async with self._importing:
            name, bundle = await _uploaded(context)
            session = await self._role.store.take_in(self._tenant, bundle, wire.import_key(name, bundle))
        return await self._state(session.id)

    async def _state(self, session: SessionId) -> pb.SessionState:
        return wire.pack_session(*await self._role.store.get(self._tenant, session))

    async def _banning(self, session: SessionId, asked: Asked, request: pb.RunTurnRequest) -> Asked:
        found, _ = await self._role.store.get(self._tenant, session)
        tokenizer = self._role.gateway.served(found.model).tokenizer
        banned = asked.sampling.banned_tokens + banned_spellings(request.sampling.bad_words, tokenizer)
        return replace(asked, sampling=replace(asked.sampling, banned_tokens=banned))

    async def SubmitToolResults(
        self, request: pb.SubmitToolResultsRequest, _context: Context
    ) -> pb.SubmitToolResultsResponse:
        session, branch = wire.unpack_session_id(request.session), wire.unpack_branch(request.branch)
        results, key = unpack_results(request.results), wire.unpack_key(request)
        go_on = self._going_on(request.go_on) if request.HasField("go_on") else None
        if go_on is not None and request.go_on.sampling.bad_words:
            go_on = await self._banning(session, go_on, request.go_on)
        calls, turn = await submit(self._role, self._tenant, session, branch, results, key, go_on)
        told = [pack_pending(pending) for pending in calls]
        return pb.SubmitToolResultsResponse(calls=told, turn=None if turn is None else wire.pack_turn(turn))

    async def ListToolCalls(self, request: pb.ListToolCallsRequest, _context: Context) -> pb.ListToolCallsResponse:
        session, branch = wire.unpack_session_id(request.session), wire.unpack_branch(request.branch)
        calls = await self._role.store.calls(self._tenant, session, branch)
        return pb.ListToolCallsResponse(calls=[pack_pending(pending) for pending in calls])

    def _asked(self, request: pb.RunTurnRequest) -> Asked:
        seed = self._role.gateway.fresh_seed()
        return wire.unpack_asked(request, seed=seed, deadline_s=self._settings.deadline_s)

    def _going_on(self, request: pb.RunTurnRequest) -> Asked:
        """The turn after the results, of which the request says the rest."""
        for field in ("items", "session", "branch", "idempotency_key", "expected_head"):
            if getattr(request, field):
                raise InvalidArgument(f"go_on.{field} must be empty", field=f"go_on.{field}")
        return self._asked(request)

    async def _stream(
        self, turn: TurnRecord, after: int | None, context: Context, seen: tuple[TurnEvent, ...] = ()
    ) -> None:
        """The rest of a turn after the message `after`, from its opening when that is None; `seen` are the events up to
        there."""
        seq = after or 0
        shown = ShownTurn(lambda: self._role.gateway.served(turn.model).tokenizer)
        if seen:
            shown.take(Progress(replace(turn, ending=None), seen))
        with self._role.watching(turn):
            if after is None:
                await context.write(wire.opening(turn))
            async for progress in self._role.watch(turn, seq):
                for message in wire.pack_progress(*shown.take(progress), after=seq):
                    await context.write(message)
                    seq = message.seq
                await let_others_run()


async def _downloaded(context: Context, data: bytes) -> None:
    try:
        async with asyncio.timeout(_CARRY_S):
            for start in range(0, len(data), _PIECE):
                await context.write(pb.ExportResponse(data=data[start : start + _PIECE]))
    except TimeoutError:
        raise DeadlineExceeded(f"the bundle was not read within {_CARRY_S:g} s") from None


async def _uploaded(context: Context) -> tuple[str, bytes]:
    """What a client sends of a bundle: the idempotency key, and all of it."""
    data, name = bytearray(), ""
    try:
        async with asyncio.timeout(_CARRY_S):
            while isinstance(piece := await context.read(), pb.ImportRequest):
                name = name or piece.idempotency_key
                data += piece.data
                if len(data) > MAX_BUNDLE_BYTES:
                    raise TooLarge(f"a bundle has at most {MAX_BUNDLE_BYTES >> 20} MiB", field="bundle")
    except TimeoutError:
        raise DeadlineExceeded(f"the bundle did not come within {_CARRY_S:g} s", field="bundle") from None
    return name, bytes(data)
