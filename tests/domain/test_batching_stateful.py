"""A batcher under any use: pages add up, every chunk attends to the right KV, nobody spins, and everybody gets done."""

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.domain.steps import DecodeAwaiting, DecodeLocal, NoRoom, Prefill, Reserved, Work
from runtime.ids import SequenceId
from tests.domain.batch_model import PAGE, SALT, Model, ticket_pages
from tests.scale import scaled

if TYPE_CHECKING:
    from runtime.domain.messages import TicketPage

PAGES = 6
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=7)
LENGTHS = st.integers(1, PAGES * PAGE - 7)
WHICH = st.integers(0, 7)


class Batching(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model(PAGES, step_tokens=5, max_running=2)
        self.batcher = self.model.batcher
        self.left: dict[SequenceId, int] = {}
        self.awaiting: dict[SequenceId, list[TicketPage]] = {}
        self.exported: dict[SequenceId, list[int]] = {}
        self.count = 0

    def submit(self, prompt: list[int], work: Work, length: int) -> SequenceId:
        """One in three is of another priority, and of those that decode here one in five of another tenant."""
        self.count += 1
        salt = b"another" if self.count % 5 == 0 and isinstance(work, DecodeLocal) else SALT
        ident = self.model.submit(str(self.count), prompt, work, salt=salt, priority=self.count % 3)
        self.left[ident] = length
        return ident

    @rule(prompt=PROMPTS, length=LENGTHS)
    def submit_local(self, prompt: list[int], length: int) -> None:
        self.submit(prompt, DecodeLocal(), length)

    @rule(prompt=PROMPTS, length=LENGTHS)
    def submit_awaiting(self, prompt: list[int], length: int) -> None:
        self.submit(prompt, DecodeAwaiting(), length)

    @rule(prompt=PROMPTS, first=st.integers(0, 2))
    def submit_prefill(self, prompt: list[int], first: int) -> None:
        self.exported[self.submit(prompt, Prefill(len(prompt) - 1, first), 0)] = []

    @precondition(lambda self: self.awaiting)
    @rule(which=WHICH, place=WHICH)
    def land(self, which: int, place: int) -> None:
        ident = list(self.awaiting)[which % len(self.awaiting)]
        if self.awaiting[ident]:
            self.model.land(ident, self.awaiting[ident].pop(place % len(self.awaiting[ident])))

    @precondition(lambda self: self.awaiting)
    @rule(which=WHICH)
    def run_awaiting(self, which: int) -> None:
        ident = list(self.awaiting)[which % len(self.awaiting)]
        del self.awaiting[ident]
        self.batcher.run(ident)

    @precondition(lambda self: self.left)
    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        self.forget(list(self.left)[which % len(self.left)])

    @rule()
    def step(self) -> None:
        if self.step_brings() or not self.batcher.busy:
            return
        # It may have been a preemption; whoever was preempted runs again now, or waits.
        assert self.step_brings() or not self.batcher.busy, "it would spin"

    def step_brings(self) -> bool:
        """Whether the step brought anything out."""
        busy = self.batcher.busy
        chunks, events = self.model.step()
        for event in events:
            if isinstance(event, NoRoom):
                del self.left[event.sequence]
            elif isinstance(event, Reserved):
                self.awaiting[event.sequence] = ticket_pages(self.model.tokens[event.sequence])
        for chunk in chunks:
            if chunk.sample:
                self.sampled(chunk.sequence)
        brings = self.export() or bool(chunks or events)
        assert busy or not brings, "it slept with work to do"
        return brings

    def sampled(self, ident: SequenceId) -> None:
        self.left[ident] -= 1
        if self.left[ident]:
            self.model.append(ident, self.left[ident] % 2)
        else:
            self.forget(ident)

    def export(self) -> bool:
        exports = self.batcher.exports()
        for ident, ready, done in exports:
            for page in ready:
                self.model.expect_kv(ident, page.index, page.page, page.valid_tokens)
                self.exported[ident].append(page.index)
            assert self.exported[ident] == sorted(set(self.exported[ident])), "a page was exported twice, or too late"
            if done:
                self.forget(ident)
        return bool(exports)

    def forget(self, ident: SequenceId) -> None:
        del self.left[ident]
        self.awaiting.pop(ident, None)
        assert self.batcher.remove(ident)

    @invariant()
    def pages_and_sequences_add_up(self) -> None:
        self.batcher.check()
        assert len(self.batcher) == len(self.left)
        load = self.batcher.load()
        assert load.awaiting == len(self.awaiting)
        assert load.pages.total == PAGES

    def teardown(self) -> None:
        """Whatever was going on, everybody gets done once all that would land has landed."""
        for _ in range(40 * (len(self.left) + 1)):
            for ident in list(self.awaiting):
                self.awaiting.pop(ident)
                self.batcher.run(ident)
            if not self.left:
                break
            assert self.batcher.busy, "somebody waits and nothing would wake him"
            self.step()
        assert not self.left
        load = self.batcher.load()
        assert (load.running, load.waiting, load.awaiting, load.pages.landing, load.pages.owned) == (0, 0, 0, 0, 0)


TestBatching = Batching.TestCase
TestBatching.settings = settings(max_examples=scaled(20, 500), stateful_step_count=40)
