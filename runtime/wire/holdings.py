"""Changes of what a worker holds."""

from batonmesh.v1 import pages_pb2 as pb
from runtime.domain.holdings import MOST_IDS, Changes, Moved, Tier
from runtime.errors import InvalidArgument
from runtime.ids import PageId
from runtime.wire import fields

_ID_BYTES = 16
_MOST_MOVED = 8
_TO_TIER = {Tier.POOL: pb.PAGE_TIER_POOL, Tier.HOST: pb.PAGE_TIER_HOST, Tier.COLD: pb.PAGE_TIER_COLD}
_FROM_TIER = {number: tier for tier, number in _TO_TIER.items()}


def pack_changes(changes: Changes) -> pb.WatchPagesResponse:
    return pb.WatchPagesResponse(
        after=changes.after,
        until=changes.until,
        reset=changes.reset,
        moved=[
            pb.MovedPages(
                tier=_TO_TIER[moved.tier],
                stored=b"".join(moved.stored),
                removed=b"".join(moved.removed),
            )
            for moved in changes.moved
        ],
    )


def unpack_changes(message: pb.WatchPagesResponse) -> Changes:
    """Pages of a tier that is not known here are left out."""
    fields.at_most(_MOST_MOVED, len(message.moved), "moved")
    moved = tuple(
        Moved(_FROM_TIER[each.tier], _ids(each.stored, "moved.stored"), _ids(each.removed, "moved.removed"))
        for each in message.moved
        if each.tier in _FROM_TIER
    )
    if message.until < message.after:
        raise InvalidArgument(f"until is {message.until}, before {message.after}", field="until")
    return Changes(message.after, message.until, moved, message.reset)


def _ids(joined: bytes, field: str) -> tuple[PageId, ...]:
    if len(joined) % _ID_BYTES:
        raise InvalidArgument(f"{field} has {len(joined)} bytes, which is no number of ids", field=field)
    fields.at_most(MOST_IDS, len(joined) // _ID_BYTES, field)
    return tuple([PageId(joined[at : at + _ID_BYTES]) for at in range(0, len(joined), _ID_BYTES)])
