"""What is behind a worker's pool, as it tells it."""

from collections.abc import Sequence

from batonmesh.v1 import mesh_pb2 as pb
from runtime.domain.tiers import Tier, TierReport
from runtime.errors import InvalidArgument
from runtime.wire import fields

_MAX_TIERS = 8
_MAX_REASONS = 64
_TROUBLE_CHARACTERS = 512
_TIERS = {tier.value: tier for tier in Tier}


def pack_tier(report: TierReport) -> pb.Tier:
    return pb.Tier(
        name=report.tier.value,
        place=report.place,
        pages=report.pages,
        bytes=report.bytes,
        capacity_bytes=report.capacity_bytes,
        written_pages=report.written_pages,
        read_pages=report.read_pages,
        failures=dict(report.failures),
        trouble=report.trouble[:_TROUBLE_CHARACTERS],
    )


def unpack_tiers(messages: Sequence[pb.Tier]) -> tuple[TierReport, ...]:
    fields.at_most(_MAX_TIERS, len(messages), "worker.tiers")
    return tuple(map(_unpack, messages))


def _unpack(message: pb.Tier) -> TierReport:
    if message.name not in _TIERS:
        raise InvalidArgument(f"worker.tiers.name must be one of {', '.join(_TIERS)}", field="worker.tiers.name")
    fields.at_most(_MAX_REASONS, len(message.failures), "worker.tiers.failures")
    failures = [(fields.text(name, "worker.tiers.failures", 64), count) for name, count in message.failures.items()]
    return TierReport(
        _TIERS[message.name],
        fields.text(message.place, "worker.tiers.place", 1024),
        message.pages,
        message.bytes,
        message.capacity_bytes,
        message.written_pages,
        message.read_pages,
        tuple(sorted(failures)),
        fields.text(message.trouble, "worker.tiers.trouble", _TROUBLE_CHARACTERS),
    )
