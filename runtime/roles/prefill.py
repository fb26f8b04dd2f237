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

# Pages of one prefill that wait here for their path: several steps' worth, and far less than a long prompt's.
_AHEAD_BYTES = 1 << 30


@dataclass(slots=True)
class _Running:
    """A prefill: what its engine brought and is not pushed yet, when it began and its first `upto` tokens were
    computed, on the loop's clock, and for how many seconds it was pushed and not computed. `cached` of its tokens were
    in the prefix cache."""

    arrivals: asyncio.Queue[Exported | Prefilled | BatonError]
    began: float
    sequence: Sequence
    computed: float = 0.0
    exposed: float = 0.0
    upto: int = 0
    cached: int = 0


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
        self._ahead = max(_AHEAD_BYTES // engine.spec.page_bytes, 1)
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
            if running.sequence.session == session:
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
        most = min(len(call.tokens) // self.engine.spec.page_tokens + 2, self._ahead + 1)
        running = self._running[sequence.id] = _Running(
            asyncio.Queue(maxsize=most * self._groups + 2), asyncio.get_running_loop().time(), sequence
        )
        try:
            async with asyncio.timeout(ticket.remaining_ms / 1000), self._transport.open(ticket) as sender:
                await self._preloading.bring(sequence, len(call.tokens) - 1)
                self._compute(running, min(page.index for page in ticket.pages))
                return await self._push(call, running, sender)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed during the prefill", field="ticket.remaining_ms") from None
        finally:
            del self._running[sequence.id]
            self.engine.tell(Cancel(sequence.id))

    def _compute(self, running: _Running, first_page: int) -> None:
        """Have the engine go on from this page, as far as what it brings may wait here. What comes before it is in the
        prefix cache."""
        if (erased := self._forgetting.refusal(running.sequence.session)) is not None:
            raise erased
        end = (first_page + self._ahead) * self.engine.spec.page_tokens
        running.upto = min(end, len(running.sequence.prompt) - 1)
        self.engine.tell(Submit(running.sequence, Prefill(running.upto, first_page, self._cuts)))

    def _computed(self, running: _Running, cached: int, before: int) -> None:
        """All that was computed is pushed; the first `before` tokens were computed earlier."""
        if running.cached >= before:
            running.cached = cached
        running.exposed += asyncio.get_running_loop().time() - running.computed

    async def _push(self, call: PrefillCall, running: "_Running", sender: Sender) -> PrefillDone:
        wanted = {page.index for page in call.ticket.pages}
        pages = payload_bytes = before = 0
        while True:
            match await running.arrivals.get():
                case Exported(frame=frame) if frame.index in wanted:
                    await sender.send(frame)
                    pages += frame.part is None or frame.part.group == self._groups - 1
                    payload_bytes += len(frame.payload)
                case Prefilled(cached_tokens=cached) if running.upto < len(call.tokens) - 1:
                    self._computed(running, cached, before)
                    before = running.upto
                    self._compute(running, before // self.engine.spec.page_tokens)
                case Prefilled(cached_tokens=cached):
                    await sender.commit()
                    waited = running.exposed
                    self._computed(running, cached, before)
                    prefill_ms = (running.computed - running.began - waited) * 1000
                    exposed_ms = running.exposed * 1000
                    self.exposure.prefill_ms += prefill_ms
                    self.exposure.exposed_ms += exposed_ms
                    return PrefillDone(running.cached, pages, payload_bytes, prefill_ms, exposed_ms)
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
