"""Priorities and tenants: who comes first, who gives way, and that nobody waits for ever or gains without a bound."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.domain.batched import Entry
from runtime.domain.fairness import SHARE, Line, Served
from runtime.domain.steps import Admitted, DecodeAwaiting, DecodeLocal, NoRoom, Reserved
from runtime.ids import SequenceId
from tests.domain.batch_model import Model, sequence
from tests.scale import scaled

LOCAL, AWAITING = DecodeLocal(), DecodeAwaiting()
LONGEST = 12


def admitted(model: Model) -> list[str]:
    return [event.sequence for event in model.step()[1] if isinstance(event, Admitted)]


# Order


def test_the_lower_number_comes_first_and_of_one_priority_who_came_first() -> None:
    model = Model(max_running=1)
    for name, priority in (("low", 5), ("a", 0), ("b", 0), ("high", -3)):
        model.submit(name, [1], LOCAL, priority=priority)
    order = []
    while len(model.batcher):
        (name,) = admitted(model)
        order.append(name)
        model.batcher.remove(SequenceId(name))
    assert order == ["high", "a", "b", "low"]


def test_priority_rules_over_sequences_whose_pages_landed_too() -> None:
    model = Model(max_running=1)
    running = model.submit("running", [9], LOCAL)
    model.step()
    landed = model.submit("landed", [1, 2, 3], AWAITING, priority=1)
    model.admit()
    model.batcher.run(landed)
    model.submit("local", [4], LOCAL)
    model.batcher.remove(running)
    assert admitted(model) == ["local"]
    model.batcher.remove(SequenceId("local"))
    assert admitted(model) == ["landed"]


def test_without_room_for_the_first_those_whose_pages_landed_go_on() -> None:
    model = Model(pages=3, max_running=3)
    landed = model.submit("landed", [1, 2, 3], AWAITING, priority=1)
    model.admit()
    model.batcher.run(landed)
    model.submit("local", [4, 5, 6, 7], LOCAL)
    assert admitted(model) == ["landed"]


def test_a_newcomer_that_comes_before_those_without_room_is_tried_at_once() -> None:
    model = Model(pages=3, max_running=3)
    model.submit("landing", [1, 2, 3], AWAITING)
    model.step()
    model.submit("large", [4, 5, 6, 7], LOCAL, priority=1)
    assert admitted(model) == []
    assert not model.batcher.busy
    model.submit("small", [8], LOCAL)
    assert model.batcher.busy
    assert admitted(model) == ["small"]


def test_the_worst_priority_gives_way_and_of_it_who_was_admitted_last() -> None:
    model = Model(pages=4, step_tokens=8, max_running=4)
    low = [model.submit(name, [place, 1], LOCAL, priority=2) for place, name in enumerate(("low", "late low"))]
    model.step()
    high = [model.submit(name, [place, 2], LOCAL) for place, name in enumerate(("high", "late high"))]
    model.step()
    for ident in (*low, *high):
        model.append(ident, 7)
    chunks, _ = model.step()
    assert [chunk.sequence for chunk in chunks] == high
    assert [entry.sequence.id for entry in model.batcher._line] == low


def test_everybody_who_decodes_gets_a_token_in_every_step_whoever_he_is() -> None:
    model = Model(pages=32, step_tokens=8, max_running=4)
    names = [model.submit(str(n), [n], LOCAL, salt=bytes([n % 2]), priority=n) for n in range(3)]
    model.step()
    model.submit("long", range(40), LOCAL, priority=-1)
    for _ in range(5):
        for name in names:
            model.append(name, 1)
        chunks, _ = model.step()
        assert {chunk.sequence for chunk in chunks} == {*names, "long"}


def test_of_two_prompts_in_the_batch_that_of_the_less_served_tenant_is_prefilled_first() -> None:
    model = Model(pages=64, step_tokens=8, max_running=4)
    model.submit("a", range(40), LOCAL, salt=b"a")
    model.step()
    model.submit("b", range(40), LOCAL, salt=b"b")
    run: Counter[str] = Counter()
    for _ in range(6):
        run.update({chunk.sequence: len(chunk.tokens) for chunk in model.step()[0]})
    assert abs(run["a"] + 8 - run["b"]) <= 8


# Nobody starves


@settings(max_examples=scaled(100, 2000), deadline=None)
@given(
    ahead=st.lists(st.integers(-2, 9), max_size=6),
    priority=st.integers(-1, 9),
    behind=st.lists(st.lists(st.integers(-9, 9), max_size=3), max_size=80),
)
def test_whoever_waits_is_picked_after_a_bounded_number_of_others(
    ahead: list[int], priority: int, behind: list[list[int]]
) -> None:
    """However many better ones keep coming: `behind` come while it waits, before each pick."""
    line, count = Line(served := Served()), 0

    def join(value: int) -> Entry:
        nonlocal count
        entry = Entry(sequence(str(count), [1], priority=value), LOCAL, [1], 1, number=count)
        count += 1
        served.joins(entry)
        line.add(entry)
        return entry

    for each in ahead:
        join(each)
    mine = join(priority)
    for picks in range(SHARE * (len(ahead) + 1)):
        for each in behind[picks] if picks < len(behind) else [-9, -9]:
            join(each)
        picked = line.next()
        assert picked is not None
        line.take(picked)
        served.leaves(picked)
        if picked is mine:
            return
    raise AssertionError("it starves")


def test_a_flow_of_better_ones_does_not_starve_one_in_the_batcher() -> None:
    model = Model(pages=32, max_running=2)
    model.submit("low", [1, 2, 3], LOCAL, priority=9)
    for number in range(10 * SHARE):
        model.submit(str(number), [number, 5], LOCAL, priority=-1)
        for chunk in model.step()[0]:
            if chunk.sequence == "low":
                assert number <= 2 * SHARE
                return
            model.batcher.remove(chunk.sequence)
    raise AssertionError("it starves")


def test_reservations_pass_one_that_waits_for_room_a_bounded_number_of_times() -> None:
    model = Model(pages=6, max_running=2)
    held = [model.submit(f"held {number}", [number, 1, 1], AWAITING) for number in range(3)]
    model.admit()
    model.submit("large", [7] * 6, LOCAL)
    granted = 0
    for number in range(10 * SHARE):
        model.batcher.remove(held.pop(0))
        held.append(late := model.submit(f"late {number}", [number, 2, 2], AWAITING, priority=-1))
        events = model.admit()
        if Admitted(SequenceId("large"), 0, 0) in events:
            assert granted <= SHARE
            return
        if NoRoom(late) in events:
            held.remove(late)
        granted += Reserved(late, 0) in events
    raise AssertionError("it starves")


# No tenant gains without a bound


@settings(max_examples=scaled(25, 300), deadline=None)
@given(
    more=st.lists(st.integers(0, 5), min_size=2, max_size=3),
    shapes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 5)), min_size=1, max_size=8),
    max_running=st.integers(1, 3),
    pages=st.integers(8, 20),
)
def test_no_tenant_is_ahead_of_one_that_waits_by_more_than_a_batch(
    more: list[int], shapes: list[tuple[int, int]], max_running: int, pages: int
) -> None:
    """Each has some waiting all the time, of these shapes: tokens of the prompt and of the answer."""
    model = Model(pages, step_tokens=5, max_running=max_running)
    flow = Flow(model, [max_running + 1 + each for each in more], shapes)
    for _ in range(scaled(150, 600)):
        flow.step()
        assert max(flow.served) - min(flow.served) <= max_running * LONGEST
    assert min(flow.served) > 0


def test_a_tenant_that_was_away_has_saved_up_nothing() -> None:
    model = Model(32, step_tokens=5, max_running=2)
    flow = Flow(model, [3, 0], [(5, 3)])
    for _ in range(100):
        flow.step()
    assert flow.served[0] > 10 * LONGEST
    flow.waiting, flow.served = [3, 3], [0, 0]
    for _ in range(100):
        flow.step()
        assert abs(flow.served[0] - flow.served[1]) <= 2 * 2 * LONGEST


class Flow:
    """Tenants that keep sequences waiting, and what each was served: tokens that were run, each once."""

    def __init__(self, model: Model, waiting: list[int], shapes: list[tuple[int, int]]) -> None:
        self.waiting = waiting
        self.served = [0] * len(waiting)
        self._model = model
        self._shapes = shapes
        self._count = 0
        self._left: dict[SequenceId, int] = {}
        self._run: Counter[SequenceId] = Counter()

    def step(self) -> None:
        for tenant, wanted in enumerate(self.waiting):
            there = sum(self._of(entry.sequence.id) == tenant for entry in self._model.batcher._line)
            for _ in range(wanted - there):
                self._submit(tenant)
        for chunk in self._model.step()[0]:
            fresh = max(chunk.start + len(chunk.tokens) - self._run[chunk.sequence], 0)
            self._run[chunk.sequence] += fresh
            self.served[self._of(chunk.sequence)] += fresh
            if chunk.sample:
                self._sampled(chunk.sequence)

    @staticmethod
    def _of(ident: SequenceId) -> int:
        return int(ident.split(":")[0])

    def _submit(self, tenant: int) -> None:
        prompt, answer = self._shapes[self._count % len(self._shapes)]
        assert prompt + answer <= LONGEST
        self._count += 1
        tokens = [self._count * 8 + place for place in range(prompt)]
        name = f"{tenant}:{self._count}"
        self._left[self._model.submit(name, tokens, LOCAL, salt=bytes([tenant]))] = answer

    def _sampled(self, ident: SequenceId) -> None:
        self._left[ident] -= 1
        if self._left[ident]:
            self._model.append(ident, 1)
        else:
            self._model.batcher.remove(ident)


def test_what_was_served_is_forgotten_with_the_last_of_a_priority() -> None:
    served = Served()
    entries = [Entry(sequence(str(n), [1], bytes([n])), LOCAL, [1], 1) for n in range(2)]
    for entry in entries:
        served.joins(entry)
    served.ran(entries[0], 1)
    served.ran(entries[0], 1)
    assert [served.tokens(entry) for entry in entries] == [1, 0]
    for entry in entries:
        served.leaves(entry)
    assert not served._tokens
