"""What a worker holds, and how fast it is, as they travel."""

import pytest

from batonmesh.v1 import mesh_pb2, pages_pb2
from runtime.domain.holdings import MOST_IDS, Changes, Moved, Tier
from runtime.domain.profile import Profile
from runtime.errors import InvalidArgument
from runtime.ids import PageId
from runtime.wire.holdings import pack_changes, unpack_changes
from runtime.wire.profile import pack_profile, unpack_profile

ONE, TWO = PageId(bytes(range(16))), PageId(bytes(16))


@pytest.mark.parametrize(
    "changes",
    [
        Changes(0, 0),
        Changes(3, 9, (Moved(Tier.POOL, (ONE, TWO), (TWO,)), Moved(Tier.COLD, (), (ONE,))), reset=True),
        Changes(1 << 40, 1 << 41, (Moved(Tier.HOST, (TWO,)),)),
    ],
)
def test_changes_arrive_as_they_were(changes: Changes) -> None:
    packed = pack_changes(changes).SerializeToString()
    assert unpack_changes(pages_pb2.WatchPagesResponse.FromString(packed)) == changes


def test_pages_of_a_tier_of_a_later_version_are_left_out() -> None:
    moved = pages_pb2.MovedPages(stored=ONE)
    assert unpack_changes(pages_pb2.WatchPagesResponse(until=1, moved=[moved])) == Changes(0, 1)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pages_pb2.WatchPagesResponse(after=2, until=1), "until"),
        (
            pages_pb2.WatchPagesResponse(moved=[pages_pb2.MovedPages(tier=pages_pb2.PAGE_TIER_POOL, stored=b"short")]),
            "moved.stored",
        ),
        (
            pages_pb2.WatchPagesResponse(
                moved=[pages_pb2.MovedPages(tier=pages_pb2.PAGE_TIER_POOL, removed=bytes(16 * (MOST_IDS + 1)))]
            ),
            "moved.removed",
        ),
        (pages_pb2.WatchPagesResponse(moved=[pages_pb2.MovedPages()] * 9), "moved"),
    ],
)
def test_changes_that_make_no_sense_are_refused_by_their_field(
    message: pages_pb2.WatchPagesResponse, field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        unpack_changes(message)
    assert refused.value.field == field


def test_a_profile_arrives_as_it_was() -> None:
    profile = Profile(((256, 20.5), (512, 50.0)), ((1, 7.0), (8, 9.5)), (("grpc", 1.5), ("shm", 9.0)))
    assert unpack_profile(mesh_pb2.Profile.FromString(pack_profile(profile).SerializeToString())) == profile


@pytest.mark.parametrize(
    ("points", "field"),
    [
        ([(0, 1.0)], "worker.profile.prefill"),
        ([(256, 1.0), (256, 2.0)], "worker.profile.prefill"),
        ([(256, 2.0), (512, 1.0)], "worker.profile.prefill"),
        ([(256, float("nan"))], "worker.profile.prefill.ms"),
        ([(count, 1.0) for count in range(1, 66)], "worker.profile.prefill"),
    ],
)
def test_a_line_that_does_not_rise_is_no_profile(points: list[tuple[int, float]], field: str) -> None:
    told = mesh_pb2.Profile(prefill=[mesh_pb2.Measured(count=count, ms=ms) for count, ms in points])
    with pytest.raises(InvalidArgument) as refused:
        unpack_profile(told)
    assert refused.value.field == field
