"""What a worker does with pages for others: holds copies of theirs (`keep`), and gives what it has (`fetch`).

Copies are in its prefix cache, where what it computes itself finds them; they leave as all pages do there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, field

from runtime.domain.landing import Complete, Deliver, Incomplete, Landing, LandingEvent, LandingState
from runtime.domain.messages import Holder, Ticket, TicketPage
from runtime.domain.mirroring import FetchCall, Fetched, KeepCall, Kept
from runtime.domain.pages import extend_chain
from runtime.domain.sequence import Sampling, Sequence
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Copied, Forgotten, Frame, Land
from runtime.errors import DeadlineExceeded, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from runtime.ids import Ids, PageId, SequenceId, SessionId, TenantId
from runtime.ports import MirrorPeers, Sender, Transport
from runtime.roles.forgetting import Forgetting
from runtime.roles.forms import check_form
from runtime.roles.tapping import Tapped
from runtime.roles.tierless import TIERLESS

# Calls to keep pages that run at once, and pages that the engine copies between two steps.
_MOST_CALLS = 4
_BATCH_BYTES = 8 << 20
_BATCH_PAGES = 16
# Its own requests come before copies for others.
_LAST = 1 << 20
_NEVER_RUNS = Sampling(max_tokens=1)


def batch_pages(spec: ModelSpec) -> int:
    """Pages that are copied and moved together."""
    return max(min(_BATCH_PAGES, _BATCH_BYTES // spec.page_bytes), 1)


@dataclass(slots=True)
class _Keeping:
    """A call that brings pages; `over` once no more come."""

    session: SessionId | None
    over: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    landed: int = 0
    bytes: int = 0

    def end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


class HoldingRole:
    """`here` is this worker; `forget` is what its role does about erased sessions."""

    def __init__(
        self,
        here: Holder,
        engine: Tapped,
        transport: Transport,
        peers: MirrorPeers,
        tenants: Mapping[TenantId, bytes],
        ids: Ids,
        forget: Callable[[SessionId], Awaitable[Forgotten]],
    ) -> None:
        self._here = here
        self._engine = engine
        self._transport = transport
        self._peers = peers
        self._tenants = tenants
        self._ids = ids
        self._forget = forget
        self._forgetting = Forgetting(engine, TIERLESS)
        self._keeping: dict[SequenceId, _Keeping] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Fence what was given up, until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None

    def running(self) -> int:
        return len(self._keeping)

    async def forget_session(self, session: SessionId) -> Forgotten:
        """Take nothing of it any more, give nothing of it away, and let the role drop what is here."""
        self._forgetting.bury(session)
        for sequence, keeping in self._keeping.items():
            if keeping.session == session:
                self._engine.cancel(sequence)
                keeping.end()
        return await self._forget(session)

    async def keep(self, call: KeepCall) -> Kept:
        """Hold the pages of a sequence of another worker. Cancelling this frees everything but what has landed."""
        salt = self._tenants.get(call.tenant)
        if salt is None:
            raise InvalidArgument(f"tenant {call.tenant!r} is unknown here", field="tenant")
        self._refuse(call.session)
        spec = self._engine.spec
        chain = extend_chain([], salt, call.tokens[:-1], spec.page_tokens, spec.kv_fingerprint)
        held = self._engine.match(chain)
        upto = min(len(chain), held + call.most_pages)
        if upto == held:
            return Kept(held)
        if self._group is None:
            raise Unavailable("the worker stops")
        if len(self._keeping) >= _MOST_CALLS:
            raise ResourceExhausted("copies of other sequences come already", retry_after_ms=100)
        name = SequenceId(f"{self._ids.transfer()}/kept")
        tokens = call.tokens[: upto * spec.page_tokens + 1]
        sequence = Sequence(name, tokens, _NEVER_RUNS, salt, priority=_LAST, session=call.session)
        keeping = self._keeping[name] = _Keeping(call.session)
        try:
            async with asyncio.timeout(call.remaining_ms / 1000):
                with self._engine.reserving(sequence) as reserved:
                    local_tokens = await reserved
                    self._refuse(call.session)
                    if local_tokens is None:
                        raise ResourceExhausted("there is no room for copies now", retry_after_ms=1000)
                    first = local_tokens // spec.page_tokens
                    await self._bring(call, name, chain[:upto], first, keeping)
                    return Kept(first + keeping.landed, keeping.bytes)
        except TimeoutError:
            raise DeadlineExceeded("the pages did not come in time", field="remaining_ms") from None
        finally:
            del self._keeping[name]

    async def fetch(self, call: FetchCall) -> Fetched:
        """Push what is here of a ticket, up to the first page that is not. Cancelling this tells the receiver."""
        ticket, spec = call.ticket, self._engine.spec
        check_form(spec, ticket, len(spec.page_groups))
        self._refuse(call.session)
        full = [page for page in ticket.pages if page.valid_tokens == spec.page_tokens]
        size = batch_pages(spec)
        batches = [full[start : start + size] for start in range(0, len(full), size)]
        if not batches:
            raise InvalidArgument("the ticket names no full page", field="ticket.pages")
        try:
            async with asyncio.timeout(ticket.remaining_ms / 1000):
                first = await self._engine.copy(_ids(batches[0]))
                if first[0].payload is None:
                    raise NotFound("the first page is not here", field="ticket.pages")
                async with self._transport.open(ticket) as sender:
                    return await self._push(call.session, batches, first, sender)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while pages were pushed", field="ticket.remaining_ms") from None

    async def _push(
        self, session: SessionId | None, batches: list[list[TicketPage]], copied: tuple[Copied, ...], sender: Sender
    ) -> Fetched:
        """The next pages are copied while these travel."""
        pages = size = 0
        for number, batch in enumerate(batches):
            last = number + 1 == len(batches)
            coming = None if last else self._engine.copy(_ids(batches[number + 1]))
            self._refuse(session)
            for page, each in zip(batch, copied, strict=True):
                if each.payload is None:
                    await sender.commit()
                    return Fetched(pages, size)
                await sender.send(Frame(each.page, page.index, page.valid_tokens, each.payload))
                pages, size = pages + 1, size + len(each.payload)
            copied = () if coming is None else await coming
        await sender.commit()
        return Fetched(pages, size)

    async def _bring(
        self, call: KeepCall, sequence: SequenceId, chain: list[PageId], first: int, keeping: _Keeping
    ) -> None:
        """Let the source push the pages from the place `first` on, as far as it has them."""
        size = self._engine.spec.page_tokens
        pages = tuple(TicketPage(index, chain[index], size) for index in range(first, len(chain)))
        if not pages:
            return
        landing = Landing(self._ids.transfer(), 1, pages)
        endpoint = self._transport.expect(
            landing.transfer, landing.epoch, pages, lambda event: self._landed(landing, event, sequence, keeping)
        )
        try:
            ticket = self._ticket(landing, pages, endpoint, call.remaining_ms)
            await self._peers.holder(call.source).fetch(FetchCall(ticket, call.session))
            await keeping.over
        finally:
            if landing.state is not LandingState.VERIFIED:
                landing.abort()
                self._fence(landing)
            keeping.landed = _leading(pages, landing.missing)

    def _ticket(self, landing: Landing, pages: tuple[TicketPage, ...], endpoint: str, remaining_ms: int) -> Ticket:
        """For pages as they are: a copy with losses would be one for everybody."""
        spec, transport = self._engine.spec, self._transport
        return Ticket(
            landing.transfer,
            landing.epoch,
            self._here.boot,
            transport.name,
            endpoint,
            spec.kv_fingerprint,
            spec.dtype,
            pages,
            remaining_ms,
            transport.offers,
            parts=True,
            role=self._here.role,
        )

    def _landed(self, landing: Landing, event: LandingEvent, sequence: SequenceId, keeping: _Keeping) -> None:
        for command in landing.on(event):
            match command:
                case Deliver(frame):
                    keeping.bytes += len(frame.payload)
                    self._engine.tell(Land(sequence, frame))
                case Complete() | Incomplete():
                    keeping.end()

    def _fence(self, landing: Landing) -> None:
        if self._group is not None:
            self._group.create_task(self._fenced(landing))

    async def _fenced(self, landing: Landing) -> None:
        await self._transport.fence(landing.transfer)
        landing.fenced()

    def _refuse(self, session: SessionId | None) -> None:
        if (erased := self._forgetting.refusal(session)) is not None:
            raise erased


def _ids(pages: Several[TicketPage]) -> tuple[PageId, ...]:
    return tuple(page.id for page in pages)


def _leading(pages: tuple[TicketPage, ...], missing: tuple[TicketPage, ...]) -> int:
    """How many are here before the first that is missing."""
    return len(pages) if not missing else missing[0].index - pages[0].index
