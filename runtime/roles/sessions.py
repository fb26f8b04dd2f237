"""A gateway's sessions: opens turns in the store, runs them, shows them to whoever watches, adopts what others left.

Owns the turns that run here; whether that is still so is the store's to say, by the epoch of every write.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from runtime.clock import Clock
from runtime.domain import session_turn as st
from runtime.domain.routing import DECODE
from runtime.domain.sessions import (
    DEFAULT_POLICIES,
    MAIN,
    Asked,
    Context,
    Ending,
    Halt,
    Item,
    Key,
    OnConflict,
    Policies,
    Progress,
    Session,
    TurnEvent,
    TurnRecord,
    TurnStatus,
)
from runtime.domain.spending import NO_ACCOUNT, Account
from runtime.errors import BatonError, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from runtime.ids import Ids, SessionId, TenantId, TurnId
from runtime.ports import Observe, unobserved
from runtime.roles.booking import Booking
from runtime.roles.gateway import GatewayRole
from runtime.roles.making import beginning, fresh_session, hidden_session, to_run, unanswered
from runtime.roles.rendering import Offload, Rendering
from runtime.roles.session_settings import SessionSettings
from runtime.roles.session_turn import RunningTurn
from runtime.roles.starting import start
from runtime.roles.sweeping import sweeps
from runtime.session_store import SessionStore

_log = logging.getLogger(__name__)
_TRIES = 64


class SessionRole:
    def __init__(
        self,
        gateway: GatewayRole,
        store: SessionStore,
        ids: Ids,
        clock: Clock,
        settings: SessionSettings,
        offload: Offload,
        observe: Observe = unobserved,
    ) -> None:
        self.gateway = gateway
        self.store = store
        self.clock = clock
        self.settings = settings
        self.observe = observe
        self.group: asyncio.TaskGroup
        self._ids = ids
        self._rendering = Rendering(gateway, settings.inline_chars, offload)
        self._running: dict[TurnId, RunningTurn] = {}
        self._waiting: dict[TurnId, TurnRecord] = {}
        self._opening: set[TurnId] = set()
        self._watchers: Counter[TurnId] = Counter()
        self._booking = Booking(store, clock, settings.retry_s)
        gateway.on_kept = self._booking.take

    async def run(self) -> None:
        """Serve until cancelled. What runs then is left to the next owner, who need not wait for the lease's end."""
        try:
            async with asyncio.TaskGroup() as self.group:
                await self._say_alive()
                self.group.create_task(self._beats())
                self.group.create_task(self.store.tend())
                self.group.create_task(sweeps(self.store, self.clock, self.settings.sweep_s))
                self.group.create_task(self._booking.run())
                while True:
                    await self._look_after()
                    await self.clock.sleep(self.settings.beat_s)
        finally:
            for running in self._running.values():
                running.stop()
            await self._leave()

    def running(self) -> int:
        return len(self._running)

    async def create(
        self,
        tenant: TenantId,
        model: str,
        key: Key | None,
        *,
        metadata: Mapping[str, str] | None = None,
        rerender: bool = False,
        policies: Policies = DEFAULT_POLICIES,
        account: Account = NO_ACCOUNT,
        said: tuple[Item, ...] = (),
    ) -> Session:
        """With what is `said` in it at first, and nobody is to answer yet. Raises `NotFound`, and `FailedPrecondition`
        naming `rerender` where the model cannot do without."""
        served, owner = self.gateway.served(model), self.gateway.gateway
        made = fresh_session(self._ids.session(), tenant, served, metadata or {}, rerender=rerender)
        session = replace(made, policies=policies, account=account)
        first = unanswered(self._ids.turn(), tenant, made.id, MAIN, said, owner) if said else None
        return await self.store.create(session, key, first)

    async def open_alone(
        self, tenant: TenantId, model: str, asked: Asked, key: Key | None, *, hidden: bool = True
    ) -> TurnRecord:
        """Open a turn in a session that is made with it, or find the one that was opened under this key."""
        served, named = self.gateway.served(model), self._ids.session()
        if hidden:
            session = hidden_session(named, tenant, served, tools=bool(asked.toolbox.tools))
        else:
            session = fresh_session(named, tenant, served, {}, rerender=False)
        context, asked, ident = beginning(session), asked.settled(session.policies), self._ids.turn()
        ready = await self._rendering.prepare(context, asked)
        self._opening.add(ident)
        try:
            record = to_run(ident, session, MAIN, asked, ready, self.gateway.gateway)
            turn, fresh = await self.store.open_alone(session, record, key)
            if fresh:
                self._run(turn, (), context)
        finally:
            self._opening.discard(ident)
        return turn

    async def add(
        self, tenant: TenantId, session: SessionId, branch: str, items: tuple[Item, ...], key: Key | None
    ) -> TurnRecord:
        """Commit items that nobody is to answer yet; raises `FailedPrecondition` where the branch is busy."""
        said = unanswered(self._ids.turn(), tenant, session, branch, items, self.gateway.gateway)
        return await self.store.add(said, key)

    async def open(
        self, tenant: TenantId, session: SessionId, branch: str, asked: Asked, key: Key | None
    ) -> tuple[TurnRecord, bool]:
        """Open a turn, or find the one that was opened under this key; says whether it is new."""
        if key is not None and (known := await self.store.known(tenant, session, key)) is not None:
            return known, False
        ident = self._ids.turn()
        # Until it is known here, it looks in the store like one of ours that nobody runs.
        self._opening.add(ident)
        try:
            return await self._open(ident, tenant, session, branch, asked, key)
        except asyncio.CancelledError:
            if asked.cancel_unwatched is not False:
                # It may be there all the same, and nobody will ever watch it.
                self._cancel_later(self._cancel_unseen(tenant, session, ident))
            raise
        finally:
            self._opening.discard(ident)

    async def _open(
        self,
        ident: TurnId,
        tenant: TenantId,
        session: SessionId,
        branch: str,
        asked: Asked,
        key: Key | None,
    ) -> tuple[TurnRecord, bool]:
        for _ in range(_TRIES):
            context = await self.store.context(tenant, session, branch, asked.instructions)
            asked = asked.settled(context.session.policies)
            ready = await self._rendering.prepare(context, asked)
            record = to_run(ident, context.session, branch, asked, ready, self.gateway.gateway)
            opened = await self.store.open(record, key)
            if opened is not None:
                break  # else the branch has moved on, or calls of its head were resolved
        else:
            raise FailedPrecondition(f"branch {branch!r} moves on faster than a turn can be prepared", field="branch")
        turn, fresh = opened
        if fresh and turn.status is TurnStatus.RUNNING:
            self._run(turn, (), context)
        elif fresh:
            self._waiting[turn.id] = turn
            if turn.asked.on_conflict in (OnConflict.INTERRUPT, OnConflict.ROLLBACK):
                await self._beat()
            self.group.create_task(self._begin_next(session, branch))
        return turn, fresh

    async def halt(self, tenant: TenantId, session: SessionId, turn: TurnId, how: Halt) -> TurnRecord:
        """Ask for a turn's end, wherever it runs; it has not ended yet when this returns."""
        record = await self.store.halt(tenant, session, turn, how)
        if record.halt is not None:
            await self._stop(turn, record.halt)
        return record

    @contextmanager
    def watching(self, turn: TurnRecord) -> Iterator[None]:
        """Somebody watches a turn; the last to leave one that is not to go on alone ends it."""
        self._watchers[turn.id] += 1
        try:
            yield
        finally:
            self._watchers[turn.id] -= 1
            if not self._watchers[turn.id]:
                del self._watchers[turn.id]
                if turn.asked.cancel_unwatched and (turn.id in self._running or turn.id in self._waiting):
                    self._cancel_later(self._cancel_unwatched(turn.tenant, turn.session, turn.id))

    async def watch(self, record: TurnRecord, after: int) -> AsyncIterator[Progress]:
        """Its events above `after` as they become durable, whoever its owner is; the last has its ending."""
        tenant, session, turn = record.tenant, record.session, record.id
        running: RunningTurn | None = None
        while True:
            running = running or self._running.get(turn)
            if running is not None and running.left is None:
                progress = running.progress(after)
            else:
                running = None
                progress = await self.store.progress(tenant, session, turn, after)
            after += len(progress.events)
            ended = progress.turn.ending is not None
            if progress.events or ended:
                yield progress
            if ended:
                return
            if running is not None:
                await running.wait_news(after)
            elif not progress.events:
                await self.clock.sleep(self.settings.poll_s)

    def leave(self, session: SessionId) -> None:
        """End what is under way of a session that was erased."""
        gone = NotFound("there is no such session", field="session")
        for running in [each for each in self._running.values() if each.turn.record.session == session]:
            running.feed(st.Fenced(gone))
        for turn in [each.id for each in self._waiting.values() if each.session == session]:
            del self._waiting[turn]

    def over(self, running: RunningTurn) -> None:
        """A turn ended here, or left."""
        record = running.turn.record
        # One that was fenced may have been taken up here again.
        if self._running.get(record.id) is running:
            del self._running[record.id]
            self.group.create_task(self._begin_next(record.session, record.branch))

    def _cancel_later(self, cancelling: Coroutine[Any, Any, None]) -> None:
        """Not when all here stops: then the turn is its next owner's, and whoever watched it may come back for it."""
        try:
            self.group.create_task(cancelling)
        except RuntimeError:
            cancelling.close()

    async def _cancel_unseen(self, tenant: TenantId, session: SessionId, turn: TurnId) -> None:
        try:
            opened = (await self.store.progress(tenant, session, turn, 0)).turn
        except BatonError:
            return  # it never came to be, or will be found by who looks for what was left
        if opened.asked.cancel_unwatched:
            await self._cancel_unwatched(tenant, session, turn)

    async def _cancel_unwatched(self, tenant: TenantId, session: SessionId, turn: TurnId) -> None:
        try:
            await self.halt(tenant, session, turn, Halt.DISCARD)
        except NotFound:
            return  # it never came to be, or was deleted
        except BatonError:
            _log.warning("a turn that nobody watches could not be cancelled", extra={"turn": turn})

    async def _leave(self) -> None:
        try:
            await self.store.beat(self.gateway.gateway, 0.0)
        except BatonError:
            _log.warning("the lease could not be given up: another owner will wait for its end")

    async def _beats(self) -> None:
        """However long it takes to take over what others left: who is silent meanwhile loses all that he has."""
        while True:
            await self.clock.sleep(self.settings.beat_s)
            await self._say_alive()

    async def _say_alive(self) -> None:
        try:
            await self._beat()
        except BatonError as error:
            _log.warning("the session store does not answer: %s", error.message)

    async def _look_after(self) -> None:
        """Take over what was left, and begin what waits."""
        try:
            if not any(worker.role == DECODE for worker in self.gateway.view().workers):
                return
            mine = frozenset(self._running) | frozenset(self._waiting) | frozenset(self._opening)
            left = await self.store.adopt(self.gateway.gateway, mine, self.settings.adopt_at_once)
        except BatonError as error:
            _log.warning("the session store does not answer: %s", error.message)
            return
        for record in left:
            try:
                await self._adopt(record)
            except BatonError as error:
                _log.warning("a turn is not taken over yet: %s", error.message, extra={"turn": record.id})
        for place in {(record.session, record.branch) for record in self._waiting.values()}:
            await self._forget_gone(*place)
            await self._begin_next(*place)

    async def _beat(self) -> None:
        halted = await self.store.beat(self.gateway.gateway, self.settings.lease_s)
        for turn, how in halted.items():
            await self._stop(turn, how)

    async def _stop(self, turn: TurnId, how: Halt) -> None:
        running = self._running.get(turn)
        if running is not None:
            running.feed(st.Halted(how))
        waiting = self._waiting.pop(turn, None)
        if waiting is not None:
            await self.store.drop(waiting, Ending(TurnStatus.CANCELLED))

    async def _adopt(self, record: TurnRecord) -> None:
        if record.status is TurnStatus.QUEUED:
            self._waiting[record.id] = record
            return
        progress = await self.store.progress(record.tenant, record.session, record.id, 0)
        try:
            context = await self.store.context(record.tenant, record.session, record.branch)
            self._run(record, progress.events, context)
        except Unavailable:
            raise
        except BatonError as error:
            tokens = [token for event in progress.events for token in event.tokens]
            await self.store.finish(record, Ending(TurnStatus.FAILED, error=error), tokens, progress.events)
            return
        if record.halt is not None:
            await self._stop(record.id, record.halt)

    async def _forget_gone(self, session: SessionId, branch: str) -> None:
        """Let go of what does not wait here any more: it was deleted, another gateway has it, or it has begun and the
        store's answer was lost, upon which it is adopted as any other."""
        here = [record for record in self._waiting.values() if (record.session, record.branch) == (session, branch)]
        for number, record in enumerate(here):
            if record.id in self._opening:
                return
            try:
                if not number:
                    _, branches = await self.store.get(record.tenant, session)
                    for live in (each.live for each in branches if each.name == branch and each.live is not None):
                        self._waiting.pop(live, None)
                known = (await self.store.progress(record.tenant, session, record.id, 0)).turn
                if known.status is TurnStatus.QUEUED and known.owner == self.gateway.gateway:
                    return  # and so do those behind it, or they are found when it has begun
            except NotFound:
                pass
            except BatonError as error:
                _log.warning("the session store does not answer: %s", error.message)
                return
            self._waiting.pop(record.id, None)

    async def _begin_next(self, session: SessionId, branch: str) -> None:
        """Run what is next on a branch, if it waits here and nobody begins it already."""
        try:
            record = await self.store.waiting(session, branch)
            if record is not None and record.id in self._waiting and record.id not in self._opening:
                self._opening.add(record.id)
                try:
                    await self._begin(record)
                finally:
                    self._opening.discard(record.id)
        except BatonError as error:
            _log.warning("a turn that waits could not begin: %s", error.message, extra={"session": session})

    async def _begin(self, record: TurnRecord) -> None:
        context = await self.store.context(record.tenant, record.session, record.branch, record.asked.instructions)
        try:
            prepared, reserve = await self._rendering.prepare(context, record.asked)
            ready = replace(record, prepared=prepared, owner=self.gateway.gateway, reserve=reserve)
            begun = await self.store.begin(ready)
        except (Unavailable, ResourceExhausted):
            raise
        except BatonError as error:
            if await self.store.drop(record, Ending(TurnStatus.FAILED, error=error)):
                self._waiting.pop(record.id, None)
                self.group.create_task(self._begin_next(record.session, record.branch))
            return
        if begun is not None:
            self._waiting.pop(begun.id, None)
            self._run(begun, (), context)

    def _run(self, record: TurnRecord, persisted: tuple[TurnEvent, ...], context: Context) -> None:
        served = self._rendering.served(context.session)
        self._running[record.id] = start(self, served, record, persisted, context)
