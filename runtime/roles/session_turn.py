"""One session turn under way at its owner: runs the commands of its table, and wakes those who watch it."""

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from runtime.domain import session_turn as st
from runtime.domain.generation import Generation
from runtime.domain.sequence import Ref
from runtime.domain.sessions import Progress, TurnEvent, TurnRecord
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
        kept: st.Kept,
        calls: st.Calls,
    ) -> None:
        self.turn = st.SessionTurn(record, persisted, kept, calls)
        self.left: BatonError | None = None
        self._role = role
        self._news = asyncio.Event()
        self._silent_since: float | None = None
        self._retry: Timer | None = None
        self._generating = role.group.create_task(self._generate(generation))

    def feed(self, event: st.SessionTurnEvent) -> None:
        commands = self.turn.on(event)
        record = self.turn.record
        self._role.observe(Ref(record.id, record.epoch, 0), event, commands)
        for command in commands:
            self._do(command)
        if self.turn.over:
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
        if self._retry is not None:
            self._retry.cancel()

    def _do(self, command: st.SessionTurnCommand) -> None:
        match command:
            case st.Append() | st.Finish():
                self._role.group.create_task(self._write(command))
            case st.Publish():
                self._tell()
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

    async def _write(self, command: st.Append | st.Finish) -> None:
        store, record = self._role.store, self.turn.record
        try:
            if isinstance(command, st.Append):
                await store.append(record, command.event)
            else:
                await store.finish(record, command.ending, command.tokens, command.events)
        except (Unavailable, ResourceExhausted):
            self._silent()
        except StaleAttempt as error:
            self.feed(st.Fenced(error))
        except BatonError as error:
            _log.exception("the session store refused a write", extra={"turn": record.id})
            self.feed(st.Fenced(error))
        else:
            self._silent_since = None
            self.feed(st.Stored())

    def _silent(self) -> None:
        now = self._role.clock.now()
        self._silent_since = now if self._silent_since is None else self._silent_since
        over = now - self._silent_since >= self._role.settings.store_grace_s
        self.feed(st.GraceOver() if over else st.StoreSilent())

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
