"""Continuous batching: who runs when, who gives way, and what is computed anew."""

import pytest

from runtime.domain.messages import TicketPage
from runtime.domain.pages import Occupancy
from runtime.domain.steps import Admitted, DecodeAwaiting, DecodeLocal, Load, NoRoom, Prefill, Reserved
from runtime.errors import InvariantViolation
from tests.domain.batch_model import PAGE, Model, chain_of, sequence, ticket_pages

LOCAL, AWAITING = DecodeLocal(), DecodeAwaiting()
TEN = list(range(10))


def spans(model: Model) -> list[tuple[str, int, int]]:
    """(sequence, first position, tokens) of the chunks of the next step."""
    return [(chunk.sequence, chunk.start, len(chunk.tokens)) for chunk in model.step()[0]]


def test_a_prompt_is_prefilled_in_chunks_and_only_the_last_is_sampled() -> None:
    model = Model()
    model.submit("a", TEN, LOCAL)
    steps = [model.step()[0] for _ in range(3)]
    assert [[(chunk.start, len(chunk.tokens), chunk.sample) for chunk in step] for step in steps] == [
        [(0, 4, False)],
        [(4, 4, False)],
        [(8, 2, True)],
    ]


def test_decoding_goes_first_and_prefill_gets_what_is_left_of_the_step() -> None:
    model = Model()
    a = model.submit("a", [1], LOCAL)
    model.step()
    model.submit("b", TEN, LOCAL)
    model.append(a, 2)
    assert spans(model) == [("a", 1, 1), ("b", 0, 3)]


def test_what_was_computed_before_is_not_computed_again_but_for_the_last_token() -> None:
    model = Model()
    a = model.submit("a", TEN, LOCAL)
    while model.batcher.busy and spans(model)[-1][1:] != (8, 2):
        pass
    model.batcher.remove(a)
    b = model.submit("b", TEN, LOCAL)
    chunks, events = model.step()
    assert events == [Admitted(b, 8, 0)]
    assert [(chunk.start, chunk.tokens) for chunk in chunks] == [(8, (8, 9))]


def test_a_prefill_that_is_cached_whole_computes_nothing() -> None:
    model = Model()
    a = model.submit("a", TEN, Prefill(upto=8, first_page=0))
    for _ in range(2):
        model.step()
    model.batcher.remove(a)
    b = model.submit("b", TEN, Prefill(upto=8, first_page=1))
    chunks, events = model.step()
    assert (chunks, events) == ((), [Admitted(b, 8, 0)])
    ((ident, ready, done),) = model.batcher.exports()
    assert (ident, [page.index for page in ready], done) == (b, [1, 2, 3], True)


def test_only_so_many_run_together_and_the_others_come_in_order() -> None:
    model = Model(max_running=2)
    for name in "abc":
        model.submit(name, [1], LOCAL)
    assert spans(model) == [("a", 0, 1), ("b", 0, 1)]
    assert model.batcher.load().waiting == 1
    model.batcher.remove(sequence("a", []).id)
    assert spans(model) == [("c", 0, 1)], "b has nothing new to run"
    assert model.batcher.load().waiting == 0


def test_without_a_free_page_the_sequence_admitted_last_gives_way_and_is_computed_anew() -> None:
    model = Model(pages=2)
    a, b = model.submit("a", [1, 2], LOCAL), model.submit("b", [3, 4], LOCAL)
    model.step()
    model.append(a, 5)
    model.append(b, 6)
    assert spans(model) == [("a", 2, 1)]
    assert model.batcher.load() == Load(1, 1, 0, 3, Occupancy(0, 0, 2, 0))
    model.batcher.remove(a)
    assert spans(model) == [("b", 0, 3)], "its own page was evicted meanwhile"


def test_a_preempted_sequence_finds_its_pages_in_the_cache_when_nobody_took_them() -> None:
    model = Model(pages=3)
    a, b = model.submit("a", [1, 2], LOCAL), model.submit("b", [3, 4, 5], LOCAL)
    model.step()
    model.append(a, 6)
    spans(model)
    model.batcher.remove(a)
    assert spans(model) == [("b", 2, 1)]
    assert b in model.batcher


def test_a_preempted_sequence_comes_before_those_who_wait() -> None:
    model = Model(pages=2)
    a, _, _ = (model.submit(name, tokens, LOCAL) for name, tokens in (("a", [1, 2]), ("b", [3, 4]), ("c", [7])))
    model.step()
    model.append(a, 5)
    model.step()
    model.batcher.remove(a)
    assert [event.sequence for event in model.admit()] == ["b", "c"]


def test_nothing_new_is_reserved_while_a_preempted_sequence_waits() -> None:
    model = Model(pages=4, max_running=3)
    a, b = model.submit("a", [1, 2], LOCAL), model.submit("b", [3, 4, 5, 6], LOCAL)
    model.step()
    model.submit("held", [7], AWAITING)
    model.append(a, 8)
    model.step()
    # b gave two pages back and a took one of them: there would be room for one more.
    assert (model.batcher.load().waiting, model.batcher.pool.available) == (1, 1)
    late = model.submit("late", [9], AWAITING)
    assert model.admit() == [NoRoom(late)]
    model.batcher.remove(a)
    model.submit("late", [9], AWAITING)
    assert model.admit() == [Admitted(b, 2, 0), Reserved(late, 0)]


def test_copies_for_others_get_no_room_while_somebody_here_waits_for_it() -> None:
    model = Model(pages=4, max_running=3)
    a = model.submit("a", [1, 2, 3, 4], LOCAL)
    model.step()
    b = model.submit("b", [5, 6, 7, 8, 9], LOCAL)
    assert model.admit() == []
    copies = model.submit("copies", [1, 2, 3], DecodeAwaiting(sparing=True))
    assert model.admit() == [NoRoom(copies)]
    held = model.submit("held", [1, 2, 3], AWAITING)
    assert model.admit() == [Reserved(held, 2)]
    model.batcher.remove(held)
    model.batcher.remove(a)
    assert model.admit() == [Admitted(b, 0, 0)]


def test_a_reservation_holds_room_and_says_what_is_here_already() -> None:
    model = Model(pages=6)
    a = model.submit("a", [1, 2, 3, 4], LOCAL)
    model.step()
    model.batcher.remove(a)
    b = model.submit("b", [1, 2, 3, 9, 9, 9], AWAITING)
    assert model.admit() == [Reserved(b, 2)]
    assert model.batcher.load() == Load(0, 0, 1, 0, Occupancy(2, 2, 1, 1))
    assert not model.batcher.busy


def test_a_reservation_without_room_is_forgotten_and_changes_nothing() -> None:
    model = Model(pages=2)
    model.submit("a", [1, 2, 3], LOCAL)
    model.step()
    before = model.batcher.pool.occupancy()
    b = model.submit("b", [4, 5, 6], AWAITING)
    assert model.admit() == [NoRoom(b)]
    assert b not in model.batcher
    assert model.batcher.pool.occupancy() == before
    assert model.batcher.load().waiting == 0


def test_landed_frames_are_used_and_the_last_token_runs_here() -> None:
    model = Model()
    a = model.submit("a", TEN, AWAITING)
    model.admit()
    assert all(model.land(a, page) for page in reversed(ticket_pages(TEN)))
    model.batcher.run(a)
    chunks, events = model.step()
    assert events == [Admitted(a, 0, 9)]
    assert [(chunk.start, chunk.tokens, chunk.sample) for chunk in chunks] == [(9, (9,), True)]


def test_the_last_token_runs_here_even_when_its_page_landed_whole() -> None:
    model = Model()
    a = model.submit("a", [1, 2, 3, 4], AWAITING)
    model.admit()
    for index, ident in enumerate(chain_of([1, 2, 3, 4])):
        assert model.land(a, TicketPage(index, ident, PAGE))
    model.batcher.run(a)
    assert spans(model) == [("a", 3, 1)]


def test_from_the_first_gap_on_everything_is_computed_here() -> None:
    model = Model()
    a = model.submit("a", TEN, AWAITING)
    model.admit()
    for page in ticket_pages(TEN):
        if page.index != 2:
            model.land(a, page)
    model.batcher.run(a)
    assert [spans(model), spans(model)] == [[("a", 4, 4)], [("a", 8, 2)]]


def test_a_frame_is_wanted_once_and_only_by_a_sequence_that_awaits_it() -> None:
    model = Model()
    a, b = model.submit("a", TEN, AWAITING), model.submit("b", TEN, LOCAL)
    first, *_, last = ticket_pages(TEN)
    assert not model.land(a, first), "nothing is reserved yet"
    model.admit()
    assert model.land(a, first)
    assert not model.land(a, first)
    assert not model.land(b, first)
    model.batcher.run(a)
    assert not model.land(a, last)
    model.batcher.remove(a)
    assert not model.land(a, last)


def test_a_frame_for_what_is_here_already_is_not_wanted() -> None:
    model = Model()
    a = model.submit("a", [1, 2], LOCAL)
    model.step()
    model.batcher.remove(a)
    b = model.submit("b", [1, 2, 3, 4], AWAITING)
    model.admit()
    first, second = ticket_pages([1, 2, 3, 4])
    assert (model.land(b, first), model.land(b, second)) == (False, True)


def test_a_frame_of_another_identity_is_never_taken_for_its_page() -> None:
    model = Model()
    a = model.submit("a", TEN, AWAITING)
    model.admit()
    page = ticket_pages([*TEN[:2], 77, 78, 79])[1]
    with pytest.raises(InvariantViolation, match="invariant 8"):
        model.land(a, page)


def test_a_sequence_that_landed_waits_for_a_place_in_the_batch_and_keeps_its_pages() -> None:
    model = Model(max_running=1)
    a, b = model.submit("a", [1], LOCAL), model.submit("b", [2, 3, 4], AWAITING)
    model.step()
    model.batcher.run(b)
    model.append(a, 5)
    assert spans(model) == [("a", 1, 1)]
    assert model.batcher.load().waiting == 1
    model.batcher.remove(a)
    assert spans(model) == [("b", 0, 3)]


def test_pages_that_landed_before_a_cancel_stay_in_the_cache() -> None:
    model = Model()
    a = model.submit("a", TEN, AWAITING)
    model.admit()
    for page in ticket_pages(TEN):
        if page.index != 2:
            model.land(a, page)
    model.batcher.remove(a)
    assert model.batcher.pool.match(chain_of(TEN)) == 2
    assert model.batcher.pool.occupancy() == Occupancy(14, 0, 0, 2)


def test_two_sequences_that_computed_the_same_keep_it_once() -> None:
    model = Model(step_tokens=8)
    for name in "ab":
        model.submit(name, [1, 2, 3, 4], LOCAL)
    model.step()
    assert model.batcher.load().pages.owned == 2


def test_complete_pages_are_exported_as_they_fill_and_the_tail_at_the_end() -> None:
    model = Model()
    a = model.submit("a", TEN, Prefill(upto=7, first_page=1))
    found = []
    for _ in range(2):
        model.step()
        for ident, ready, done in model.batcher.exports():
            for page in ready:
                model.expect_kv(ident, page.index, page.page, page.valid_tokens)
            found.append(([(page.index, page.valid_tokens, page.id) for page in ready], done))
    pages = ticket_pages(TEN[:8])
    assert found == [
        ([(1, 2, pages[1].id)], False),
        ([(2, 2, pages[2].id), (3, 1, pages[3].id)], True),
    ]
    assert model.batcher.exports() == [(a, [], True)]


def test_a_sequence_has_one_life() -> None:
    model = Model()
    a = model.submit("a", TEN, AWAITING)
    with pytest.raises(InvariantViolation, match="submitted twice"):
        model.submit("a", TEN, LOCAL)
    model.admit()
    model.batcher.run(a)
    with pytest.raises(InvariantViolation, match="run twice"):
        model.batcher.run(a)
    assert (model.batcher.remove(a), model.batcher.remove(a)) == (True, False)
    model.batcher.run(a)
    assert len(model.batcher) == 0


def test_whoever_waits_in_vain_makes_nobody_busy() -> None:
    model = Model(pages=2)
    held = model.submit("held", [1, 2, 3], AWAITING)
    model.admit()
    model.submit("a", [4], LOCAL)
    assert model.batcher.busy
    assert model.step() == ((), [])
    assert not model.batcher.busy
    model.batcher.remove(held)
    assert model.batcher.busy
    assert spans(model) == [("a", 0, 1)]


def test_tenants_do_not_share_pages() -> None:
    model = Model()
    a = model.submit("a", [1, 2, 3], LOCAL)
    model.step()
    model.batcher.remove(a)
    model.batcher.submit(sequence("b", [1, 2, 3], salt=b"another"), LOCAL)
    assert model.admit() == [Admitted(sequence("b", []).id, 0, 0)]


def test_check_finds_pages_that_no_sequence_holds() -> None:
    model = Model()
    model.submit("a", TEN, LOCAL)
    model.step()
    model.batcher.check()
    model.batcher._running[0].table.pop()
    with pytest.raises(InvariantViolation, match="pages are in block tables"):
        model.batcher.check()


def test_check_finds_a_sequence_in_the_wrong_queue() -> None:
    model = Model()
    model.submit("a", TEN, LOCAL)
    model.batcher._line._queues.clear()
    with pytest.raises(InvariantViolation, match="the queues hold"):
        model.batcher.check()
