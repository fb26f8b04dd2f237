"""One attempt on a decode worker: its request's state, its timers and its transfers; runs the table's commands."""

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runtime.domain import request as r
from runtime.domain.landing import Complete, Deliver, Incomplete, Landing, LandingEvent
from runtime.domain.messages import Handoff, Output, PrefillCall, Start, Ticket, TicketPage
from runtime.domain.pages import ROOT, extend_chain, page_id, pages_for
from runtime.domain.sequence import Sequence
from runtime.domain.steps import Cancel, Land, Run, Submit
from runtime.errors import BatonError

if TYPE_CHECKING:
    from runtime.clock import Timer
    from runtime.ids import PageId
    from runtime.roles.decode import DecodeRole, Link


@dataclass(slots=True)
class _Transfer:
    number: int
    landing: Landing
    call: asyncio.Task[None] | None = None


class Attempt:
    def __init__(self, role: "DecodeRole", start: Start, salt: bytes, link: "Link") -> None:
        self.request = r.Request(start, role.settings.policy)
        self.link: Link | None = link
        self._role = role
        self._sequence = Sequence(start.ref.sequence, start.prompt, start.sampling, salt, start.forced)
        self._chain: list[PageId] = []
        self._timers: dict[str, Timer] = {}
        self._transfer: _Transfer | None = None
        self._began = role.clock.now()
        self._in_batch: float | None = None
        self._first_frame = self._last_frame = 0.0

    def begin(self) -> None:
        remaining = self.request.start.remaining_ms / 1000
        self._arm("deadline", remaining, r.DeadlinePassed())
        cached = 0
        spec = self._role.engine.spec
        if self.request.start.candidates:
            extend_chain(self._chain, self._sequence.salt, self._sequence.tokens, spec.page_tokens, spec.kv_fingerprint)
            cached = self._role.engine.match(self._chain) * spec.page_tokens
        self.feed(r.Begin(cached))

    def feed(self, event: r.RequestEvent) -> None:
        """Give the request an event and do what its table says."""
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
            case r.SubmitWork(work):
                engine.tell(Submit(self._sequence, work))
            case r.OpenLanding():
                self._open(command)
            case r.LandFrame(frame):
                engine.tell(Land(sequence, frame))
            case r.FenceLanding():
                self._fence()
            case r.RunSequence():
                self._disarm("progress")
                engine.tell(Run(sequence))
            case r.CancelSequence():
                engine.tell(Cancel(sequence))
            case r.Emit(output):
                self._emit(output)
            case r.ArmGrace():
                self._arm("grace", self._role.settings.grace_s, r.GraceOver())
            case r.Forget():
                for name in tuple(self._timers):
                    self._disarm(name)
                self._role.forget(self)

    def _emit(self, output: object) -> None:
        assert self.link is not None, "the table emits only while attached"
        if isinstance(output, Output) and output.handoff is not None:
            output = replace(output, handoff=self._timed(output.handoff))
        self.link.pending.append(output)  # type: ignore[arg-type]

    def _timed(self, handoff: Handoff) -> Handoff:
        waited = (self._in_batch or self._began) - self._began
        moved = self._last_frame - self._first_frame
        name = self._role.transport.name if handoff.moved_pages else ""
        return replace(handoff, wait_ms=waited * 1000, transfer_ms=moved * 1000, transport=name)

    def _open(self, command: r.OpenLanding) -> None:
        role, start = self._role, self.request.start
        pages = tuple(page for page in self._pages(command.local_tokens) if page.index not in command.verified)
        landing = Landing(role.ids.transfer(), command.transfer, pages)
        transfer = _Transfer(command.transfer, landing)
        endpoint = role.transport.expect(
            landing.transfer, landing.epoch, pages, lambda event: self._landed(transfer, event)
        )
        spec = role.engine.spec
        remaining = start.remaining_ms - round((role.clock.now() - self._began) * 1000)
        ticket = Ticket(
            landing.transfer,
            landing.epoch,
            role.boot,
            role.transport.name,
            endpoint,
            spec.kv_fingerprint,
            spec.dtype,
            pages,
            max(remaining, 1),
        )
        call = PrefillCall(start.tenant, self._sequence.tokens, ticket)
        transfer.call = role.group.create_task(self._call(transfer, command.peer.address, call))
        self._transfer = transfer
        self._arm_progress()

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

    async def _call(self, transfer: _Transfer, address: str, call: PrefillCall) -> None:
        try:
            done = await self._role.peers.prefill(address).prefill(call)
        except BatonError as error:
            self.feed(r.LandingLost(transfer.number, error.message))
        else:
            self.feed(r.PeerDone(transfer.number, done))

    def _landed(self, transfer: _Transfer, event: LandingEvent) -> None:
        for command in transfer.landing.on(event):
            match command:
                case Deliver(frame):
                    self._last_frame = self._role.clock.now()
                    self._first_frame = self._first_frame or self._last_frame
                    self._arm_progress()
                    self.feed(r.FrameVerified(transfer.number, frame))
                case Complete():
                    self.feed(r.LandingComplete(transfer.number))
                case Incomplete(reason):
                    self.feed(r.LandingLost(transfer.number, reason))

    def _fence(self) -> None:
        transfer = self._transfer
        assert transfer is not None
        assert transfer.call is not None
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
