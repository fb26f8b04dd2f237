"""One session turn under way at its owner: runs the commands of its table, and wakes those who watch it."""

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from runtime.domain import session_turn as st
from runtime.domain.generation import Generation
from runtime.domain.messages import Paused
from runtime.domain.reuse import Past
from runtime.domain.sequence import Ref
from runtime.domain.session_ending import Calls, Kept
from runtime.domain.sessions import Progress, TurnEvent, TurnRecord
from runtime.domain.spending import Meter
from runtime.errors import BatonError, ResourceExhausted, StaleAttempt, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.clock import Timer
    from runtime.roles.sessions import SessionRole

_log = logging.getLogger(__name__)


class RunningTurn:
    """`left` is how it left this gateway before its end, if it did."""

    def __init__(
        self,
        role: "SessionRole",
        record: TurnRecord,
        persisted: "Sequence[TurnEvent]",
        generation: Generation,
        kept: Kept,
        calls: Calls,
        token_bytes: int,
        past: Past,
    ) -> None:
        self.turn = st.SessionTurn(record, persisted, kept, calls, token_bytes, past)
        self.left: BatonError | None = None
        self._role = role
        self._news = asyncio.Event()
        self._silent_since: float | None = None
        self._retry: Timer | None = None
        self._meter = Meter(token_bytes, record.reserve.took, role.clock.now())
        self._slice = role.clock.call_later(self.turn.holds_for_ms / 1000, partial(self.feed, st.SliceDue()))
        self._generating = role.group.create_task(self._generate(generation))

    def feed(self, event: st.SessionTurnEvent) -> None:
        ran = self._meter.read(self._role.clock.now(), self.turn.tokens)
        commands = self.turn.on(event, ran)
        record = self.turn.record
        self._role.observe(Ref(record.id, record.epoch, 0), event, commands)
        for command in commands:
            self._do(command)
        if self.turn.over:
            self._slice.cancel()
            self._role.over(self)

    def progress(self, after: int) -> Progress:
        """What may be given out above the event `after`."""
        return Progress(replace(self.turn.record, ending=self.turn.ending), tuple(self.turn.published[after:]))

    async def wait_news(self, after: int) -> None:
        """Wait until there is an event above `after`, or nothing more will come."""
        while len(self.turn.published) <= after and not self.turn.over:
            await self._news.wait()

    def stop(self) -> None:
        """The gateway stops: nothing more happens here, and another owner goes on."""
        self._slice.cancel()
        if self._retry is not None:
            self._retry.cancel()

    def _do(self, command: st.SessionTurnCommand) -> None:
        match command:
            case st.Append() | st.Extend() | st.Finish():
                self._role.group.create_task(self._write(command))
            case st.HoldsUntil(milliseconds):
                self._slice.cancel()
                self._slice = self._role.clock.call_later(milliseconds / 1000, partial(self.feed, st.SliceDue()))
            case st.Publish():
                self._tell()
            case st.Rest(boot, attempt, pause, keep_ms):
                paused = Paused(attempt, self.turn.record.session, pause, keep_ms)
                self._role.gateway.paused(boot, paused)
            case st.StopGenerating():
                self._generating.cancel()
            case st.RetryLater():
                again = partial(self.feed, st.RetryDue())
                self._retry = self._role.clock.call_later(self._role.settings.retry_s, again)
            case st.GiveUp(error):
                self.left = error
                self._tell()

    async def _generate(self, generation: Generation) -> None:
        try:
            async with self._role.gateway.open(generation) as deltas:
                async for delta in deltas:
                    self.feed(st.Came(delta))
        except BatonError as error:
            self.feed(st.Broke(error))

    async def _write(self, command: st.Append | st.Extend | st.Finish) -> None:
        try:
            written = await self._stored(command)
        except (Unavailable, ResourceExhausted):
            self._silent()
        except StaleAttempt as error:
            self.feed(st.Fenced(error))
        except BatonError as error:
            _log.exception("the session store refused a write", extra={"turn": self.turn.record.id})
            self.feed(st.Fenced(error))
        else:
            self._silent_since = None
            self.feed(written)

    async def _stored(self, command: st.Append | st.Extend | st.Finish) -> st.Stored | st.Granted:
        store, record = self._role.store, self.turn.record
        match command:
            case st.Append(event):
                await store.append(record, event)
            case st.Extend(want, took):
                return st.Granted(await store.extend(record, want, took))
            case st.Finish(ending, tokens, events):
                await store.finish(record, ending, tokens, events)
        return st.Stored()

    def _silent(self) -> None:
        now = self._role.clock.now()
        self._silent_since = now if self._silent_since is None else self._silent_since
        over = now - self._silent_since >= self._role.settings.store_grace_s
        self.feed(st.GraceOver() if over else st.StoreSilent())

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
