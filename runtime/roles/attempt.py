"""One attempt on a decode worker: its request's state, its timers and its transfers; runs the table's commands."""

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runtime.domain import request as r
from runtime.domain.landing import Complete, Deliver, FrameArrived, Incomplete, Landing, LandingEvent
from runtime.domain.loading import LoadPages
from runtime.domain.messages import AttemptFailed, Handoff, Output, PrefillCall, Start, Ticket, TicketPage
from runtime.domain.pages import ROOT, extend_chain, page_id, pages_for
from runtime.domain.sequence import Sequence
from runtime.domain.steps import Cancel, Land, Run, Submit
from runtime.errors import BatonError
from runtime.roles.loads import Loads

if TYPE_CHECKING:
    from runtime.clock import Timer
    from runtime.ids import PageId
    from runtime.roles.decode import DecodeRole, Link


@dataclass(frozen=True, slots=True)
class _Transfer:
    """The landing's epoch is the number that the request gave this transfer."""

    landing: Landing
    call: asyncio.Task[None]


class Attempt:
    def __init__(self, role: "DecodeRole", start: Start, salt: bytes, link: "Link") -> None:
        self.request = r.Request(start, role.settings.policy)
        self.link: Link | None = link
        self._role = role
        self._sequence = Sequence(
            start.ref.sequence, start.prompt, start.sampling, salt, start.forced, start.priority, start.session
        )
        self._chain: list[PageId] = []
        self._timers: dict[str, Timer] = {}
        self._transfer: _Transfer | None = None
        self._loads: Loads | None = None
        self._began = role.clock.now()
        self._in_batch: float | None = None
        self._first_frame = self._last_frame = 0.0
        self._moved_by = ""
        self._stopped = False

    def begin(self) -> None:
        remaining = self.request.start.remaining_ms / 1000
        self._arm("deadline", remaining, r.DeadlinePassed())
        role, spec, tokens = self._role, self._role.engine.spec, self._sequence.tokens
        extend_chain(self._chain, self._sequence.salt, tokens, spec.page_tokens, spec.kv_fingerprint)
        cached = role.engine.match(self._chain)
        # The last token runs here, so a page that ends with it is of no use.
        useful = self._chain[: (len(tokens) - 1) // spec.page_tokens]
        stored = role.tiers.match(useful, min(cached, len(useful)))
        if stored > cached and not self.request.start.scored:
            self._loads = Loads(role.tiers, useful[:stored], cached, self._sequence.salt)
        self.feed(r.Begin(cached * spec.page_tokens, stored * spec.page_tokens))

    def lacks(self) -> int:
        """Pages that the prompt needs beyond what the prefix cache holds now; advisory."""
        engine = self._role.engine
        return pages_for(len(self._sequence.tokens), engine.spec.page_tokens) - engine.match(self._chain)

    def stop(self) -> None:
        """Take no event any more: it is closed, or the worker ends and all it held with it."""
        self._stopped = True
        for name in tuple(self._timers):
            self._disarm(name)
        if self._loads is not None:
            self._loads.close()

    def feed(self, event: r.RequestEvent) -> None:
        """Give the request an event and do what its table says."""
        if self._stopped:
            return
        if isinstance(event, r.InBatch):
            self._in_batch = self._in_batch or self._role.clock.now()
        commands = self.request.on(event)
        self._role.observe(self.request.ref, event, commands)
        for command in commands:
            self._do(command)

    def _do(self, command: r.RequestCommand) -> None:  # noqa: C901 - one command a row
        engine = self._role.engine
        sequence = self._sequence.id
        match command:
            case r.Emit(output):  # first, since it comes with every token
                self._emit(output)
            case r.SubmitWork(work):
                engine.tell(Submit(self._sequence, work))
            case LoadPages():
                self._load(command)
            case r.OpenLanding():
                self._open(command)
            case r.LandFrame(frame):
                engine.tell(Land(sequence, frame))
            case r.FenceLanding():
                self._fence()
            case r.RunSequence():
                self._disarm("progress")
                if self._loads is not None:
                    self._loads.close()  # what was read ahead, and the pool has by now
                engine.tell(Run(sequence))
            case r.CancelSequence():
                engine.tell(Cancel(sequence))
            case r.ArmGrace():
                self._arm("grace", self._role.settings.grace_s, r.GraceOver())
            case r.Forget():
                self.stop()
                if self._transfer is not None:
                    self._transfer.call.cancel()
                self._role.forget(self)

    def _emit(self, output: Output | AttemptFailed) -> None:
        assert self.link is not None, "the table emits only while attached"
        if isinstance(output, Output) and output.handoff is not None:
            output = replace(output, handoff=self._timed(output.handoff))
        self.link.pending.append(output)

    def _timed(self, handoff: Handoff) -> Handoff:
        waited = (self._in_batch or self._began) - self._began
        moved = self._last_frame - self._first_frame
        loaded = 0.0 if self._loads is None else self._loads.seconds
        return replace(
            handoff,
            wait_ms=waited * 1000,
            transfer_ms=moved * 1000,
            transport=self._moved_by,
            load_ms=loaded * 1000,
        )

    def _load(self, command: LoadPages) -> None:
        loads = self._loads
        assert loads is not None, "the table loads only what the tiers had at the beginning"
        first = command.local_tokens // self._role.engine.spec.page_tokens
        self._role.group.create_task(loads.bring(command.transfer, first, self.feed, self._role.clock))

    def _open(self, command: r.OpenLanding) -> None:
        role = self._role
        pages = tuple(page for page in self._pages(command.local_tokens) if page.index not in command.verified)
        if not pages:
            # Of the transfer before, only the commit was lost.
            self.feed(r.LandingComplete(command.transfer))
            return
        landing = Landing(role.ids.transfer(), command.transfer, pages)
        endpoint = role.transport.expect(
            landing.transfer, landing.epoch, pages, lambda event: self._landed(landing, event)
        )
        start, ticket = self.request.start, self._ticket(landing, pages, endpoint)
        call = PrefillCall(start.tenant, self._sequence.tokens, ticket, start.priority, start.session)
        task = role.group.create_task(self._call(command.transfer, command.peer.address, call))
        self._transfer = _Transfer(landing, task)
        self._arm_progress()

    def _ticket(self, landing: Landing, pages: tuple[TicketPage, ...], endpoint: str) -> Ticket:
        role, spec = self._role, self._role.engine.spec
        remaining = self.request.start.remaining_ms - round((role.clock.now() - self._began) * 1000)
        return Ticket(
            landing.transfer,
            landing.epoch,
            role.boot,
            role.transport.name,
            endpoint,
            spec.kv_fingerprint,
            spec.dtype,
            pages,
            max(remaining, 1),
            role.transport.offers,
            role.settings.encoding,
            role.settings.dtypes,
            parts=True,
        )

    def _pages(self, local_tokens: int) -> list[TicketPage]:
        """The pages beyond `local_tokens` that hold all tokens but the last, which runs here."""
        spec, tokens = self._role.engine.spec, self._sequence.tokens
        size, upto = spec.page_tokens, len(tokens) - 1
        full = upto // size
        pages = [TicketPage(index, self._chain[index], size) for index in range(local_tokens // size, full)]
        if pages_for(upto, size) > full:
            parent = self._chain[full - 1] if full else ROOT
            tail = page_id(self._sequence.salt, parent, tokens[full * size : upto], size, spec.kv_fingerprint)
            pages.append(TicketPage(full, tail, upto - full * size))
        return pages

    async def _call(self, number: int, address: str, call: PrefillCall) -> None:
        try:
            done = await self._role.peers.prefill(address).prefill(call)
        except BatonError as error:
            self.feed(r.LandingLost(number, error.message))
        else:
            self.feed(r.PeerDone(number, done))

    def _landed(self, landing: Landing, event: LandingEvent) -> None:
        if isinstance(event, FrameArrived):
            self._moved_by = event.path
        for command in landing.on(event):
            match command:
                case Deliver(frame):
                    self._last_frame = self._role.clock.now()
                    self._first_frame = self._first_frame or self._last_frame
                    self._arm_progress()
                    self.feed(r.FrameVerified(landing.epoch, frame))
                case Complete():
                    self.feed(r.LandingComplete(landing.epoch))
                case Incomplete(reason):
                    self.feed(r.LandingLost(landing.epoch, reason))

    def _fence(self) -> None:
        transfer = self._transfer
        if transfer is None:
            # Of the tiers: what they bring comes as messages, which nobody takes any more.
            return
        self._disarm("progress")
        transfer.landing.abort()
        transfer.call.cancel()
        self._role.group.create_task(self._fenced(transfer))

    async def _fenced(self, transfer: _Transfer) -> None:
        await self._role.transport.fence(transfer.landing.transfer)
        transfer.landing.fenced()

    def _arm_progress(self) -> None:
        lost = r.LandingLost(self.request.transfer, "no page arrived in time")
        self._arm("progress", self._role.settings.progress_s, lost)

    def _arm(self, name: str, seconds: float, event: r.RequestEvent) -> None:
        self._disarm(name)
        self._timers[name] = self._role.clock.call_later(seconds, lambda: self._expired(event))

    def _disarm(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _expired(self, event: r.RequestEvent) -> None:
        self.feed(event)
        if self.link is not None:
            self.link.flush()
