"""How fast a worker was measured to be, as it tells when it registers."""

from collections.abc import Sequence
from itertools import pairwise

from batonmesh.v1 import mesh_pb2 as pb
from runtime.domain.profile import Profile
from runtime.errors import InvalidArgument
from runtime.wire import fields

_MAX_POINTS = 64
_MAX_LINKS = 16


def pack_profile(profile: Profile) -> pb.Profile:
    return pb.Profile(
        prefill=[pb.Measured(count=tokens, ms=ms) for tokens, ms in profile.prefill],
        decode=[pb.Measured(count=batch, ms=ms) for batch, ms in profile.decode],
        links=[pb.LinkSpeed(transport=transport, gb_per_s=speed) for transport, speed in profile.links],
    )


def unpack_profile(message: pb.Profile) -> Profile:
    fields.at_most(_MAX_LINKS, len(message.links), "worker.profile.links")
    links = [
        (
            fields.name(link.transport, "worker.profile.links.transport", 32),
            fields.milliseconds(link.gb_per_s, "worker.profile.links.gb_per_s"),
        )
        for link in message.links
    ]
    prefill = _points(message.prefill, "worker.profile.prefill")
    if any(later[1] < earlier[1] for earlier, later in pairwise(prefill)):
        raise InvalidArgument("worker.profile.prefill.ms must rise", field="worker.profile.prefill")
    return Profile(prefill, _points(message.decode, "worker.profile.decode"), tuple(links))


def _points(points: Sequence[pb.Measured], field: str) -> tuple[tuple[int, float], ...]:
    fields.at_most(_MAX_POINTS, len(points), field)
    told = tuple((point.count, fields.milliseconds(point.ms, f"{field}.ms")) for point in points)
    counts = [0, *(count for count, _ in told)]
    if any(later <= earlier for earlier, later in pairwise(counts)):
        raise InvalidArgument(f"{field}.count must rise, from 1 at the least", field=field)
    return told
