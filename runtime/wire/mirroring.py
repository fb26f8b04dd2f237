"""Who holds pages, and the calls by which copies of them come to be and are fetched."""

from collections.abc import Sequence

from batonmesh.v1 import mirror_pb2 as pb
from runtime.domain.messages import Holder, MirrorReport
from runtime.domain.mirroring import FetchCall, Fetched, KeepCall, Kept
from runtime.domain.routing import DECODE, PREFILL
from runtime.errors import InvalidArgument
from runtime.ids import BootId, TenantId, WorkerId
from runtime.wire import fields
from runtime.wire.handoff import pack_ticket, unpack_ticket

_MAX_HOLDERS = 16
_ROLES = (PREFILL, DECODE)


def pack_holder(holder: Holder) -> pb.PageHolder:
    return pb.PageHolder(worker=holder.worker, boot=holder.boot, address=holder.address, role=holder.role)


def unpack_holder(message: pb.PageHolder, field: str) -> Holder:
    if message.role not in _ROLES:
        raise InvalidArgument(f"{field}.role must be one of {', '.join(_ROLES)}", field=f"{field}.role")
    return Holder(
        WorkerId(fields.name(message.worker, f"{field}.worker")),
        BootId(fields.name(message.boot, f"{field}.boot")),
        fields.name(message.address, f"{field}.address", 256),
        message.role,
    )


def unpack_holders(messages: Sequence[pb.PageHolder], field: str) -> tuple[Holder, ...]:
    fields.at_most(_MAX_HOLDERS, len(messages), field)
    return tuple(unpack_holder(each, field) for each in messages)


def pack_keep_call(call: KeepCall) -> pb.KeepRequest:
    return pb.KeepRequest(
        tenant=call.tenant,
        tokens=call.tokens,
        source=pack_holder(call.source),
        most_pages=call.most_pages,
        remaining_ms=call.remaining_ms,
        session=call.session or "",
    )


def unpack_keep_call(message: pb.KeepRequest) -> KeepCall:
    return KeepCall(
        TenantId(fields.name(message.tenant, "tenant")),
        fields.tokens(message.tokens, "tokens", least=2),
        unpack_holder(message.source, "source"),
        fields.at_least(1, message.most_pages, "most_pages"),
        fields.at_least(1, message.remaining_ms, "remaining_ms"),
        fields.session(message.session),
    )


def pack_kept(kept: Kept) -> pb.KeepResponse:
    return pb.KeepResponse(pages=kept.pages, fetched_bytes=kept.fetched_bytes)


def unpack_kept(message: pb.KeepResponse) -> Kept:
    return Kept(message.pages, message.fetched_bytes)


def pack_fetch_call(call: FetchCall) -> pb.FetchRequest:
    return pb.FetchRequest(ticket=pack_ticket(call.ticket), session=call.session or "")


def unpack_fetch_call(message: pb.FetchRequest) -> FetchCall:
    return FetchCall(unpack_ticket(message.ticket), fields.session(message.session))


def pack_fetched(fetched: Fetched) -> pb.FetchResponse:
    return pb.FetchResponse(pages=fetched.pages, payload_bytes=fetched.payload_bytes)


def unpack_fetched(message: pb.FetchResponse) -> Fetched:
    return Fetched(message.pages, message.payload_bytes)


def pack_mirror(report: MirrorReport) -> pb.MirrorReport:
    return pb.MirrorReport(
        pages=report.pages,
        bytes=report.bytes,
        waiting=report.waiting,
        dropped=report.dropped,
        failures=report.failures,
    )


def unpack_mirror(message: pb.MirrorReport) -> MirrorReport:
    return MirrorReport(message.pages, message.bytes, message.waiting, message.dropped, message.failures)
