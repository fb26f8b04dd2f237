"""A prefill worker: computes KV for others and pushes each chunk's pages while it computes the next.

Owns the running prefills; keeps nothing of them but what its engine's prefix cache keeps.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.domain.messages import PrefillCall, PrefillDone
from runtime.domain.sequence import Sampling, Sequence
from runtime.domain.spec import LayerGroup
from runtime.domain.steps import Cancel, Exported, Forgotten, Prefill, Prefilled, SequenceFailed, StepOutput, Submit
from runtime.errors import BatonError, DeadlineExceeded, EngineFailed, InvalidArgument, StaleAttempt
from runtime.ids import SequenceId, SessionId, TenantId
from runtime.ports import Engine, Sender, Tiers, Transport
from runtime.roles.forgetting import Forgetting
from runtime.roles.forms import check_form
from runtime.roles.preloading import Preloading
from runtime.roles.tierless import TIERLESS


@dataclass(slots=True)
class _Running:
    """A prefill: what its engine brought and is not pushed yet, and when it began and was computed, on the loop's
    clock."""

    arrivals: asyncio.Queue[Exported | Prefilled | BatonError]
    began: float
    session: SessionId | None
    computed: float = 0.0


@dataclass(slots=True)
class Exposure:
    """Of the prefills that arrived: milliseconds of computing, and of pushing that went on after it."""

    prefill_ms: float = 0.0
    exposed_ms: float = 0.0


class PrefillRole:
    def __init__(
        self,
        engine: Engine,
        transport: Transport,
        tenants: Mapping[TenantId, bytes],
        tiers: Tiers = TIERLESS,
        cut: tuple[LayerGroup, ...] = (),
        exposure: Exposure | None = None,
    ) -> None:
        """`cut`: groups of layers that follow each other, by which pages travel, and for which the engine is asked one
        after the other; without them pages travel as the engine's spec says. `exposure` is counted on."""
        self.engine = engine
        self._cuts = tuple(group.layers[-1] + 1 for group in cut)
        self._transport = transport
        self._tiers = tiers
        self._preloading = Preloading(engine, tiers)
        self._tenants = tenants
        self._running: dict[SequenceId, _Running] = {}
        self._forgetting = Forgetting(engine, tiers)
        self.exposure = exposure or Exposure()

    async def run(self) -> None:
        """Serve until cancelled; raises `EngineFailed` when the engine dies, after telling every caller."""
        try:
            async for step in self.engine.steps():
                self._on_step(step)
        except EngineFailed as error:
            for running in self._running.values():
                running.arrivals.put_nowait(error)
            raise

    async def forget_session(self, session: SessionId) -> Forgotten:
        """End what runs of it, drop its pages and take nothing of it any more; returns once that is done."""
        self._forgetting.bury(session)
        for sequence, running in self._running.items():
            if running.session == session:
                self.engine.tell(Cancel(sequence))
                running.arrivals.put_nowait(StaleAttempt("the session was erased", field="session"))
        self._preloading.end(session)
        return await self._forgetting.drop(session)

    @property
    def _groups(self) -> int:
        """Parts that a page travels in."""
        return len(self._cuts) or len(self.engine.spec.page_groups)

    def running(self) -> int:
        return len(self._running)

    async def prefill(self, call: PrefillCall) -> PrefillDone:
        """Compute and push the ticket's pages. Cancelling this frees everything here and tells the receiver."""
        ticket = call.ticket
        salt = self._tenants.get(call.tenant)
        if salt is None:
            raise InvalidArgument(f"tenant {call.tenant!r} is unknown here", field="tenant")
        check_form(self.engine.spec, ticket, self._groups)
        if (erased := self._forgetting.refusal(call.session)) is not None:
            raise erased
        sequence = Sequence(
            SequenceId(ticket.transfer),
            call.tokens,
            Sampling(max_tokens=1),
            salt,
            priority=call.priority,
            session=call.session,
        )
        if sequence.id in self._running:
            raise StaleAttempt(f"transfer {ticket.transfer} is running here already", field="ticket.transfer")
        work = Prefill(len(call.tokens) - 1, min(page.index for page in ticket.pages), self._cuts)
        running = self._running[sequence.id] = _Running(
            asyncio.Queue(maxsize=(len(call.tokens) // self.engine.spec.page_tokens + 2) * self._groups + 2),
            asyncio.get_running_loop().time(),
            call.session,
        )
        try:
            async with asyncio.timeout(ticket.remaining_ms / 1000), self._transport.open(ticket) as sender:
                await self._preloading.bring(sequence, work.upto)
                if (erased := self._forgetting.refusal(call.session)) is not None:
                    raise erased
                self.engine.tell(Submit(sequence, work))
                return await self._push(call, running, sender)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed during the prefill", field="ticket.remaining_ms") from None
        finally:
            del self._running[sequence.id]
            self.engine.tell(Cancel(sequence.id))

    async def _push(self, call: PrefillCall, running: "_Running", sender: Sender) -> PrefillDone:
        wanted = {page.index for page in call.ticket.pages}
        pages = payload_bytes = 0
        while True:
            match await running.arrivals.get():
                case Exported(frame=frame) if frame.index in wanted:
                    await sender.send(frame)
                    pages += frame.part is None or frame.part.group == self._groups - 1
                    payload_bytes += len(frame.payload)
                case Prefilled(cached_tokens=cached):
                    await sender.commit()
                    ended = asyncio.get_running_loop().time()
                    prefill_ms, exposed_ms = (
                        (running.computed - running.began) * 1000,
                        (ended - running.computed) * 1000,
                    )
                    self.exposure.prefill_ms += prefill_ms
                    self.exposure.exposed_ms += exposed_ms
                    return PrefillDone(cached, pages, payload_bytes, prefill_ms, exposed_ms)
                case BatonError() as error:
                    raise error

    def _on_step(self, step: StepOutput) -> None:
        self._tiers.on_step(step)
        self._preloading.on_step(step)
        self._forgetting.on_step(step)
        for event in step.events:
            running = self._running.get(event.sequence)
            if running is None:
                continue
            match event:
                case Exported():
                    running.arrivals.put_nowait(event)
                case Prefilled():
                    running.computed = asyncio.get_running_loop().time()
                    running.arrivals.put_nowait(event)
                case SequenceFailed(error=error):
                    running.arrivals.put_nowait(error)
