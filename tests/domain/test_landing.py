"""One transfer at its receiving end: every frame once, the end once, and nothing after it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.domain.landing import (
    CommitArrived,
    Complete,
    Deliver,
    FrameArrived,
    FrameCorrupt,
    Incomplete,
    Landing,
    LandingEvent,
    LandingState,
    SenderAborted,
)
from runtime.domain.messages import TicketPage
from runtime.domain.steps import Frame
from runtime.errors import IllegalTransition
from runtime.ids import PageId, TransferId

TRANSFER, EPOCH = TransferId("transfer"), 3
PAGES = tuple(TicketPage(index, PageId(bytes([index]) * 16), 4 if index < 7 else 2) for index in (5, 6, 7))
FRAMES = tuple(Frame(page.id, page.index, page.valid_tokens, b"payload") for page in PAGES)
COMMIT = CommitArrived(TRANSFER, EPOCH, len(FRAMES))
CORRUPT = FrameCorrupt(TRANSFER, EPOCH, 5, "checksum")
ABORTED = SenderAborted(TRANSFER, EPOCH, "the path broke")


def arrived(frame: Frame) -> FrameArrived:
    return FrameArrived(TRANSFER, EPOCH, frame, "grpc")


@pytest.fixture
def landing() -> Landing:
    return Landing(TRANSFER, EPOCH, PAGES)


def test_all_frames_and_the_commit_complete_a_transfer_in_any_order_of_frames(landing: Landing) -> None:
    assert [landing.on(arrived(frame)) for frame in reversed(FRAMES)] == [[Deliver(f)] for f in reversed(FRAMES)]
    assert landing.open
    assert landing.on(COMMIT) == [Complete()]
    assert landing.state is LandingState.VERIFIED


def test_all_frames_alone_are_no_end(landing: Landing) -> None:
    for frame in FRAMES:
        landing.on(arrived(frame))
    assert (landing.missing, landing.open) == ((), True)


def test_a_frame_that_comes_twice_is_delivered_once(landing: Landing) -> None:
    assert landing.on(arrived(FRAMES[0])) == [Deliver(FRAMES[0])]
    assert landing.on(arrived(FRAMES[0])) == []


@pytest.mark.parametrize(
    "frame",
    [
        Frame(FRAMES[0].page, 4, 4, b""),
        Frame(PageId(b"x" * 16), 5, 4, b""),
        Frame(FRAMES[0].page, 5, 3, b""),
    ],
    ids=["not in the ticket", "another identity", "fewer tokens"],
)
def test_a_frame_that_the_ticket_does_not_name_brings_nothing(landing: Landing, frame: Frame) -> None:
    assert landing.on(arrived(frame)) == []
    assert landing.state is LandingState.RESERVED
    assert landing.missing == PAGES


def test_a_corrupt_frame_stays_missing_and_the_commit_finds_the_gap(landing: Landing) -> None:
    for event in (CORRUPT, arrived(FRAMES[1]), arrived(FRAMES[2])):
        landing.on(event)
    assert landing.missing == PAGES[:1]
    assert landing.on(COMMIT) == [Incomplete("committed with 1 pages missing or corrupt")]
    assert landing.state is LandingState.ABORTING


def test_a_corrupt_frame_that_comes_again_whole_is_delivered(landing: Landing) -> None:
    landing.on(CORRUPT)
    assert landing.on(arrived(FRAMES[0])) == [Deliver(FRAMES[0])]


def test_a_sender_that_gives_up_leaves_what_landed(landing: Landing) -> None:
    landing.on(arrived(FRAMES[1]))
    assert landing.on(ABORTED) == [Incomplete("the path broke")]
    assert landing.missing == (PAGES[0], PAGES[2])


@pytest.mark.parametrize("transfer", [TransferId("another"), TRANSFER])
def test_words_of_another_transfer_or_epoch_change_nothing(landing: Landing, transfer: TransferId) -> None:
    epoch = EPOCH if transfer != TRANSFER else EPOCH - 1
    stale: list[LandingEvent] = [
        FrameArrived(transfer, epoch, FRAMES[0], "grpc"),
        CommitArrived(transfer, epoch, 3),
        SenderAborted(transfer, epoch, ""),
    ]
    assert [landing.on(event) for event in stale] == [[], [], []]
    assert landing.state is LandingState.RESERVED


def test_after_an_abort_nothing_lands_and_the_fence_ends_it(landing: Landing) -> None:
    landing.on(arrived(FRAMES[0]))
    landing.abort()
    assert [landing.on(event) for event in (arrived(FRAMES[1]), COMMIT, ABORTED)] == [[], [], []]
    landing.abort()
    landing.fenced()
    assert landing.state is LandingState.FENCED


@pytest.mark.parametrize("ending", [COMMIT, ABORTED])
def test_a_transfer_ends_once(landing: Landing, ending: LandingEvent) -> None:
    for frame in FRAMES:
        landing.on(arrived(frame))
    landing.on(ending)
    assert [landing.on(event) for event in (COMMIT, ABORTED, arrived(FRAMES[0]))] == [[], [], []]


def test_only_what_is_aborting_can_be_fenced(landing: Landing) -> None:
    with pytest.raises(IllegalTransition, match=r"transfer: .*FENCED is illegal in .*RESERVED"):
        landing.fenced()
    for frame in FRAMES:
        landing.on(arrived(frame))
    landing.on(COMMIT)
    landing.abort()
    assert landing.state is LandingState.VERIFIED, "an abort after the end changes nothing"
    with pytest.raises(IllegalTransition, match="VERIFIED"):
        landing.fenced()


@given(st.lists(st.sampled_from([*map(arrived, FRAMES), CORRUPT, COMMIT, ABORTED]), max_size=12))
def test_whatever_comes_each_page_is_delivered_at_most_once_and_complete_means_all(events: list[LandingEvent]) -> None:
    landing = Landing(TRANSFER, EPOCH, PAGES)
    commands = [command for event in events for command in landing.on(event)]
    delivered = [command.frame.index for command in commands if isinstance(command, Deliver)]
    ends = [command for command in commands if not isinstance(command, Deliver)]
    assert len(set(delivered)) == len(delivered)
    assert len(ends) == (not landing.open)
    assert (ends == [Complete()]) == (landing.state is LandingState.VERIFIED)
    if ends == [Complete()]:
        assert set(delivered) == {page.index for page in PAGES}
