"""Tickets, prefill calls and the report of how a prompt got its KV."""

from batonmesh.v1 import common_pb2 as common
from batonmesh.v1 import kv_pb2 as kv
from batonmesh.v1 import worker_pb2 as pb
from runtime.domain.messages import Handoff, Offer, PrefillCall, PrefillDone, Ticket, TicketPage
from runtime.domain.routing import DECODE, PREFILL
from runtime.domain.spec import DTYPE_BYTES
from runtime.domain.steps import Encoding
from runtime.errors import InvalidArgument
from runtime.ids import BootId, PageId, TenantId, TransferId, WorkerId
from runtime.wire import fields
from runtime.wire.pages import unpack_dtypes

_PAGE_ID_BYTES = 16
_MAX_OFFERS = 16
_ROLES = (PREFILL, DECODE)
_ENCODINGS = {encoding.value: encoding for encoding in Encoding}


def pack_prefill_call(call: PrefillCall) -> pb.PrefillRequest:
    return pb.PrefillRequest(
        tenant=call.tenant,
        tokens=call.tokens,
        ticket=pack_ticket(call.ticket),
        priority=call.priority,
        session=call.session or "",
    )


def unpack_prefill_call(message: pb.PrefillRequest) -> PrefillCall:
    return PrefillCall(
        tenant=TenantId(fields.name(message.tenant, "tenant")),
        tokens=fields.tokens(message.tokens, "tokens", least=2),
        ticket=unpack_ticket(message.ticket),
        priority=message.priority,
        session=fields.session(message.session),
    )


def pack_prefill_done(done: PrefillDone) -> pb.PrefillResponse:
    return pb.PrefillResponse(
        cached_tokens=done.cached_tokens,
        pages=done.pages,
        payload_bytes=done.payload_bytes,
        prefill_ms=done.prefill_ms,
        exposed_ms=done.exposed_ms,
    )


def unpack_prefill_done(message: pb.PrefillResponse) -> PrefillDone:
    return PrefillDone(
        message.cached_tokens,
        message.pages,
        message.payload_bytes,
        fields.milliseconds(message.prefill_ms, "prefill_ms"),
        fields.milliseconds(message.exposed_ms, "exposed_ms"),
    )


def pack_ticket(ticket: Ticket) -> kv.Ticket:
    return kv.Ticket(
        transfer=ticket.transfer,
        epoch=ticket.epoch,
        boot=ticket.boot,
        transport=ticket.transport,
        endpoint=ticket.endpoint,
        fingerprint=ticket.fingerprint,
        dtype=ticket.dtype,
        pages=[kv.TicketPage(index=page.index, id=page.id, valid_tokens=page.valid_tokens) for page in ticket.pages],
        remaining_ms=ticket.remaining_ms,
        offers=[kv.Offer(transport=offer.transport, endpoint=offer.endpoint) for offer in ticket.offers],
        encoding=ticket.encoding.value,
        dtypes=ticket.dtypes,
        parts=ticket.parts,
        role=ticket.role,
    )


def unpack_ticket(message: kv.Ticket) -> Ticket:
    if message.dtype not in DTYPE_BYTES:
        raise InvalidArgument(f"ticket.dtype must be one of {', '.join(DTYPE_BYTES)}", field="ticket.dtype")
    return Ticket(
        transfer=TransferId(fields.name(message.transfer, "ticket.transfer")),
        epoch=fields.at_least(1, message.epoch, "ticket.epoch"),
        boot=BootId(fields.name(message.boot, "ticket.boot")),
        transport=fields.name(message.transport, "ticket.transport", 32),
        endpoint=fields.name(message.endpoint, "ticket.endpoint", 256),
        fingerprint=fields.fingerprint(message.fingerprint, "ticket.fingerprint"),
        dtype=message.dtype,
        pages=_unpack_pages(message),
        remaining_ms=fields.at_least(1, message.remaining_ms, "ticket.remaining_ms"),
        offers=_unpack_offers(message),
        encoding=_ENCODINGS.get(fields.text(message.encoding, "ticket.encoding", 32), Encoding.PLAIN),
        dtypes=unpack_dtypes(message.dtypes, "ticket.dtypes"),
        parts=message.parts,
        role=_unpack_role(message.role),
    )


def _unpack_role(role: str) -> str:
    if role not in ("", *_ROLES):
        raise InvalidArgument(f"ticket.role must be one of {', '.join(_ROLES)}", field="ticket.role")
    return role or DECODE


def _unpack_offers(message: kv.Ticket) -> tuple[Offer, ...]:
    fields.at_most(_MAX_OFFERS, len(message.offers), "ticket.offers")
    return tuple(
        Offer(
            fields.name(offer.transport, "ticket.offers.transport", 32),
            fields.name(offer.endpoint, "ticket.offers.endpoint", 256),
        )
        for offer in message.offers
    )


def _unpack_pages(message: kv.Ticket) -> tuple[TicketPage, ...]:
    pages: list[TicketPage] = []
    for page in message.pages:
        if len(page.id) != _PAGE_ID_BYTES:
            raise InvalidArgument(
                f"ticket.pages.id must have {_PAGE_ID_BYTES} bytes, has {len(page.id)}", field="ticket.pages.id"
            )
        if pages and page.index <= pages[-1].index:
            raise InvalidArgument("ticket.pages must come by rising index", field="ticket.pages.index")
        tokens = fields.at_least(1, page.valid_tokens, "ticket.pages.valid_tokens")
        pages.append(TicketPage(page.index, PageId(page.id), tokens))
    fields.at_least(1, len(pages), "ticket.pages")
    return tuple(pages)


def pack_handoff(handoff: Handoff) -> common.Handoff:
    return common.Handoff(
        prompt_tokens=handoff.prompt_tokens,
        cached_tokens=handoff.cached_tokens,
        moved_tokens=handoff.moved_tokens,
        moved_pages=handoff.moved_pages,
        moved_bytes=handoff.moved_bytes,
        prefill_worker=handoff.prefill_worker,
        prefill_cached_tokens=handoff.prefill_cached_tokens,
        transport=handoff.transport,
        wait_ms=handoff.wait_ms,
        transfer_ms=handoff.transfer_ms,
        prefill_ms=handoff.prefill_ms,
        exposed_ms=handoff.exposed_ms,
        host_tokens=handoff.host_tokens,
        cold_tokens=handoff.cold_tokens,
        load_ms=handoff.load_ms,
        restored_tokens=handoff.restored_tokens,
        holder=handoff.holder,
        restore_ms=handoff.restore_ms,
    )


def unpack_handoff(message: common.Handoff) -> Handoff:
    worker = message.prefill_worker if message.HasField("prefill_worker") else None
    return Handoff(
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        moved_tokens=message.moved_tokens,
        moved_pages=message.moved_pages,
        moved_bytes=message.moved_bytes,
        prefill_worker=None if worker is None else WorkerId(fields.name(worker, "handoff.prefill_worker")),
        prefill_cached_tokens=message.prefill_cached_tokens,
        transport=fields.text(message.transport, "handoff.transport", 32),
        wait_ms=fields.milliseconds(message.wait_ms, "handoff.wait_ms"),
        transfer_ms=fields.milliseconds(message.transfer_ms, "handoff.transfer_ms"),
        prefill_ms=fields.milliseconds(message.prefill_ms, "handoff.prefill_ms"),
        exposed_ms=fields.milliseconds(message.exposed_ms, "handoff.exposed_ms"),
        host_tokens=message.host_tokens,
        cold_tokens=message.cold_tokens,
        load_ms=fields.milliseconds(message.load_ms, "handoff.load_ms"),
        restored_tokens=message.restored_tokens,
        holder=WorkerId(fields.name(message.holder, "handoff.holder")) if message.HasField("holder") else None,
        restore_ms=fields.milliseconds(message.restore_ms, "handoff.restore_ms"),
    )
