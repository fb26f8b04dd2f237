"""A decode worker: owns the running requests, runs the commands of their state tables, and speaks to its gateways.

One engine, one stream per gateway; what an engine step brought goes out as one `StepBatch` per gateway.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.clock import Clock
from runtime.domain import request as r
from runtime.domain.fairness import SHARE
from runtime.domain.messages import (
    Acknowledge,
    Attach,
    AttemptFailed,
    CancelAttempt,
    GatewayCommand,
    Output,
    Paused,
    Start,
    StepBatch,
)
from runtime.domain.retention import Granted, KeptFor
from runtime.domain.sources import Policy
from runtime.domain.steps import (
    Admitted,
    Encoding,
    Forgotten,
    Generated,
    Load,
    NoRoom,
    Reserved,
    SequenceFailed,
    StepEvent,
    StepOutput,
)
from runtime.errors import BatonError, EngineFailed, InvalidArgument, NotFound, StaleAttempt
from runtime.ids import BootId, GatewayId, Ids, SequenceId, SessionId, TenantId, TurnId
from runtime.ports import Engine, Mirror, Observe, Peers, Tiers, Transport, unobserved
from runtime.roles.attempt import Attempt
from runtime.roles.forgetting import Forgetting
from runtime.roles.retaining import Retaining, RetentionSettings
from runtime.roles.tierless import TIERLESS
from runtime.roles.unmirrored import UNMIRRORED

if TYPE_CHECKING:
    from runtime.domain.sequence import Ref

_log = logging.getLogger(__name__)
_FENCES = 10_000


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """`progress_s`: a transfer that verifies no page for so long is given up. `grace_s`: how long a finished or
    detached request waits for its gateway. `heartbeat_s`: a stream is never silent for longer. `batches` bounds what
    is queued for a gateway that does not drain its stream; at the bound the stream is broken. `encoding` is how small
    pages may be made on their way here, `dtypes` those of prefill workers whose values are rounded to this one's. A
    worker that holds pages and brings none for `fetch_s` is not waited for. `retention` says what is kept for sessions
    that are away."""

    policy: Policy
    progress_s: float = 10.0
    grace_s: float = 15.0
    heartbeat_s: float = 1.0
    batches: int = 4096
    encoding: Encoding = Encoding.PLAIN
    dtypes: tuple[str, ...] = ()
    fetch_s: float = 2.0
    retention: RetentionSettings = field(default_factory=RetentionSettings)


class Link:
    """One gateway's stream, as the decode worker holds it."""

    def __init__(self, role: "DecodeRole", gateway: GatewayId, bound: int) -> None:
        self.gateway = gateway
        self.pending: list[Output | AttemptFailed] = []
        self.kept: tuple[KeptFor, ...] = ()
        self._role = role
        self._queue: asyncio.Queue[StepBatch | None] = asyncio.Queue(bound)
        self.open = True

    def command(self, command: GatewayCommand) -> None:
        """Take a command; what it leads to comes out of `batches`."""
        if self.open:
            self._role.command(self, command)

    async def batches(self) -> AsyncIterator[StepBatch]:
        """What goes out to this gateway; ends when the stream is to be broken."""
        while (batch := await self._queue.get()) is not None:
            yield batch

    def ready(self) -> bool:
        """Whether the next of `batches` will not wait, so that what is there goes out together."""
        return not self._queue.empty()

    def flush(self, *, heartbeat: bool = False) -> None:
        """Send what is pending, with the load."""
        if not self.open or not (self.pending or self.kept or heartbeat):
            return
        if self._queue.full():
            _log.warning("a gateway does not read its stream: broken", extra={"gateway": self.gateway})
            self.close()
            return
        self._queue.put_nowait(StepBatch(tuple(self.pending), self._role.engine.load(), self.kept))
        self.pending, self.kept = [], ()

    def close(self) -> None:
        """End the stream. Whoever still writes may hang at a gateway that does not read, so nothing waits for it."""
        if self.open:
            self.open = False
            self.pending = []
            while not self._queue.empty():
                self._queue.get_nowait()
            self._queue.put_nowait(None)
            self._role.lost(self)


class DecodeRole:
    def __init__(
        self,
        engine: Engine,
        transport: Transport,
        peers: Peers,
        tenants: Mapping[TenantId, bytes],
        boot: BootId,
        ids: Ids,
        clock: Clock,
        settings: DecodeSettings,
        observe: Observe = unobserved,
        tiers: Tiers = TIERLESS,
        mirror: Mirror = UNMIRRORED,
    ) -> None:
        self.engine = engine
        self.tiers = tiers
        self.mirror = mirror
        self.transport = transport
        self.peers = peers
        self.boot = boot
        self.ids = ids
        self.clock = clock
        self.settings = settings
        self.observe = observe
        self.group: asyncio.TaskGroup
        self._tenants = tenants
        self._attempts: dict[SequenceId, Attempt] = {}
        self._turns: dict[TurnId, Attempt] = {}
        self._ended: OrderedDict[TurnId, Ref] = OrderedDict()
        self._roomless: dict[SequenceId, Attempt] = {}
        self._wakes = 0
        self._links: list[Link] = []
        self._forgetting = Forgetting(engine, tiers)
        self.retaining = Retaining(engine, clock, settings.retention)

    async def run(self) -> None:
        """Serve until cancelled; a group with `EngineFailed` when the engine dies, after telling every gateway."""
        async with asyncio.TaskGroup() as self.group:
            self.group.create_task(self._heartbeats())
            try:
                async for step in self.engine.steps():
                    self._on_step(step)
            except EngineFailed as error:
                for attempt in list(self._attempts.values()):
                    attempt.feed(r.SequenceLost(error))
                self._flush()
                raise
            finally:
                # What is told from here on finds a worker that can do nothing more.
                for attempt in self._attempts.values():
                    attempt.stop()
                self.retaining.stop()

    @asynccontextmanager
    async def attach(self, gateway: GatewayId) -> AsyncIterator[Link]:
        """A gateway's stream; leaving the context means that it broke."""
        link = Link(self, gateway, self.settings.batches)
        self._links.append(link)
        link.flush(heartbeat=True)
        try:
            yield link
        finally:
            self._links.remove(link)
            link.close()

    def lost(self, link: Link) -> None:
        """The stream is over: its requests wait for their gateway on another one, or end."""
        for attempt in list(self._attempts.values()):
            if attempt.link is link:
                attempt.link = None
                attempt.feed(r.GatewayLost())

    def command(self, link: Link, command: GatewayCommand) -> None:
        if isinstance(command, Start):
            self._start(link, command)
        elif isinstance(command, Paused):
            self.retaining.paused(command)
        else:
            attempt = self._attempts.get(command.ref.sequence)
            if attempt is not None:
                self._tell(attempt, link, command)
            elif isinstance(command, Attach):
                link.pending.append(AttemptFailed(command.ref, NotFound("the attempt is unknown here", field="ref")))
        link.flush()

    def forget(self, attempt: Attempt) -> None:
        ref = attempt.request.ref
        del self._attempts[ref.sequence]
        del self._turns[ref.turn]
        self._roomless.pop(ref.sequence, None)
        self._ended[ref.turn] = ref
        if len(self._ended) > _FENCES:
            self._ended.popitem(last=False)

    async def forget_session(self, session: SessionId) -> Forgotten:
        """End what runs of it, drop its pages and take nothing of it any more; returns once that is done."""
        self._forgetting.bury(session)
        self.mirror.forget(session)
        for attempt in list(self._attempts.values()):
            if attempt.request.start.session == session:
                attempt.feed(r.SequenceLost(StaleAttempt("the session was erased", field="session")))
        self._flush()
        return await self._forgetting.drop(session)

    def running(self) -> int:
        return len(self._attempts)

    def give_up(self, error: BatonError) -> None:
        """End every attempt with `error`, so that each is tried elsewhere. The end of this worker follows."""
        for attempt in list(self._attempts.values()):
            attempt.feed(r.SequenceLost(error))
        self._flush()

    def check(self) -> None:
        """Raise `InvariantViolation` unless the engine's pages add up; only while idle."""
        self.engine.check()

    def _tell(self, attempt: Attempt, link: Link, command: CancelAttempt | Attach | Acknowledge) -> None:
        match command:
            case CancelAttempt():
                attempt.feed(r.CancelAsked())
            case Attach(have=have):
                attempt.link = link
                attempt.feed(r.Attached(have))
            case Acknowledge():
                attempt.feed(r.Acknowledged())

    def _start(self, link: Link, start: Start) -> None:
        error = self._refusal(start)
        if error is not None:
            link.pending.append(AttemptFailed(start.ref, error))
            return
        older = self._turns.get(start.ref.turn)
        if older is not None:
            older.feed(r.Superseded())
        self._ended.pop(start.ref.turn, None)
        attempt = Attempt(self, start, self._tenants[start.tenant], link)
        self._attempts[start.ref.sequence] = self._turns[start.ref.turn] = attempt
        attempt.begin()

    def _refusal(self, start: Start) -> BatonError | None:
        running = self._turns.get(start.ref.turn)
        newest = running.request.ref if running is not None else self._ended.get(start.ref.turn)
        if newest is not None and newest >= start.ref:
            return StaleAttempt(f"attempt {start.ref.attempt} is not newer than {newest.attempt}", field="ref")
        if start.tenant not in self._tenants:
            return InvalidArgument(f"tenant {start.tenant!r} is unknown here", field="tenant")
        return self._forgetting.refusal(start.session)

    def _on_step(self, step: StepOutput) -> None:
        self.tiers.on_step(step)
        self._forgetting.on_step(step)
        for event in step.events:
            attempt = self._attempts.get(event.sequence)
            if isinstance(event, Generated) and event.kept is not None:
                self._keep(event.sequence, event.kept, attempt)
            if attempt is not None and (translated := _translate(event)) is not None:
                self._note_room(event, attempt)
                attempt.feed(translated)
        self.retaining.on_step(step)
        if step.pages_freed and self._roomless:
            self._wake(step.load)
        self._flush()

    def _keep(self, sequence: SequenceId, granted: Granted, attempt: Attempt | None) -> None:
        """It has come to its end, and its pages are kept until somebody says for how long."""
        if attempt is None:
            self.retaining.unheard(sequence)
        else:
            attempt.promise = self.retaining.ended(attempt.request.start, granted)

    def _note_room(self, event: StepEvent, attempt: Attempt) -> None:
        """Who waits for room, in the order of their first try."""
        if isinstance(event, NoRoom):
            self._roomless.setdefault(event.sequence, attempt)
        elif isinstance(event, Reserved):
            self._roomless.pop(event.sequence, None)

    def _wake(self, load: Load) -> None:
        """Let as many try again as there may be room for: every try of a long prompt costs the engine. The best
        priority first, but for one time in `SHARE`: then who has waited longest, so that nobody waits for ever."""
        room = load.pages.free + load.pages.cached
        waiting = list(self._roomless.values())
        self._wakes += 1
        if self._wakes % SHARE:
            waiting.sort(key=lambda attempt: attempt.request.start.priority)
        for attempt in waiting:
            room -= attempt.lacks()
            if room < 0:
                return
            attempt.feed(r.PagesFreed())

    def _flush(self) -> None:
        # Any gateway knows the store that the sessions are in.
        hears = next((link for link in self._links if link.open), None)
        if hears is not None:
            hears.kept += self.retaining.drain()
        for link in self._links:
            link.flush()

    async def _heartbeats(self) -> None:
        while True:
            await self.clock.sleep(self.settings.heartbeat_s)
            self._flush()
            for link in self._links:
                link.flush(heartbeat=True)


def _translate(event: StepEvent) -> r.RequestEvent | None:
    """An engine's event in the words of the request's table."""
    match event:
        case Generated(index=index, tokens=tokens, text=text, finish=finish, scores=scores):
            return r.NewTokens(index, tokens, text, finish, scores)
        case Reserved(local_tokens=local):
            return r.RoomReserved(local)
        case NoRoom():
            return r.RoomRefused()
        case Admitted(cached_tokens=cached, landed_tokens=landed):
            return r.InBatch(cached, landed)
        case SequenceFailed(error=error):
            return r.SequenceLost(error)
        case _:
            return None
