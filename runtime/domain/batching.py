"""Continuous batching with chunked prefill: which tokens of which sequences the next engine step runs.

Owns every sequence on the engine and the pool's pages they hold. Never computes, samples or makes text.

    WAITING    to be admitted when there is room; also after a preemption, and then all it had is recomputed
    AWAITING   holds its pages while frames land in them, until `run`
    LANDED     holds its pages until there is a place in the batch
    RUNNING    takes part in steps

Who is admitted next is said in fairness.py. A step takes one token of every sequence that only has its newest to run,
whatever its priority and its tenant, then gives what is left of the token budget to prefill chunks, the best priority
and the least served tenant first; no more than lets the next tokens of the others come in time. Without a free page the
sequence of the worst priority, of those the one admitted last, is preempted; it comes before all others then, and
nothing new is reserved until it has its pages back. Reservations pass one that waits for room no more than `SHARE`
times.
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from runtime.domain.batched import Entry, Phase, Ready
from runtime.domain.budget import StepBudget
from runtime.domain.eviction import recomputing
from runtime.domain.fairness import SHARE, Line, Served
from runtime.domain.pages import ROOT, PagePool, extend_chain, page_id, pages_for
from runtime.domain.retention import Granted
from runtime.domain.sequence import Sequence
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import (
    Admitted,
    Chunk,
    DecodeAwaiting,
    Filled,
    Frame,
    Load,
    NoRoom,
    Prefill,
    Reserved,
    StepEvent,
    Work,
)
from runtime.errors import InvariantViolation
from runtime.ids import PageId, SequenceId


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one step: tokens run, sequences that decode together, and seconds that these may have to wait for their
    next token because others are prefilled."""

    step_tokens: int
    max_running: int
    itl_s: float | None = None


# A prefill goes on by this part of a page at the least, beside sequences that decode: on a processor a whole page takes
# longer than their step.
_LEAST_PART = 4
# Logits of a step for prompts that are scored: 64 MiB in float32, of whatever vocabulary.
_SCORED_LOGITS = 1 << 24


class Batcher:
    def __init__(self, spec: ModelSpec, pool: PagePool, limits: Limits) -> None:
        self.pool = pool
        self._spec = spec
        self._limits = limits
        self._budget = StepBudget(limits.step_tokens, limits.itl_s, max(spec.page_tokens // _LEAST_PART, 1))
        self._planned = (0, 0)
        self._entries: dict[SequenceId, Entry] = {}
        self._reserving: deque[Entry] = deque()
        self._served = Served()
        self._line = Line(self._served)
        self._passed = 0
        self._count = 0
        self._running: list[Entry] = []
        self._full = False
        self._filled: list[Filled] = []

    def __contains__(self, sequence: SequenceId) -> bool:
        return sequence in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def busy(self) -> bool:
        """Whether a step now would do anything: those that await frames, or found no room, need none."""
        line = self._line
        admits = line.has(Phase.LANDED) or (line.has(Phase.WAITING) and not self._full)
        return bool(self._running or self._reserving or admits)

    def load(self) -> Load:
        running = len(self._running)
        waiting = len(self._line) + len(self._reserving)
        # More than the newest token is left to run; what is awaited is computed elsewhere.
        prefill = sum(
            left
            for entry in self._entries.values()
            if (left := entry.target - entry.computed) > 1 and entry.phase is not Phase.AWAITING
        )
        return Load(running, waiting, len(self._entries) - running - waiting, prefill, self.pool.occupancy())

    def submit(self, sequence: Sequence, work: Work) -> None:
        if sequence.id in self._entries:
            raise InvariantViolation(16, f"sequence {sequence.id} was submitted twice")
        first_page = work.first_page if isinstance(work, Prefill) else 0
        tokens = list(sequence.tokens)
        target = work.upto if isinstance(work, Prefill) else len(tokens)
        entry = Entry(sequence, work, tokens, target, exported=first_page, number=self._count)
        self._count += 1
        if sequence.scored is not None and len(sequence.prompt) > 1 and not isinstance(work, Prefill):
            entry.unscored = 0
        self._entries[sequence.id] = entry
        self._extend(entry)
        self._served.joins(entry)
        if isinstance(work, DecodeAwaiting):
            self._reserving.append(entry)
        else:
            self._line.add(entry)
            # There may be room for one that comes before all that found none.
            self._full = self._full and self._line.next() is not entry

    def admit(self) -> list[StepEvent]:
        """Admit those that landed and those that wait, in order, as far as there is room; reserve for the others."""
        events: list[StepEvent] = []
        full = False
        while len(self._running) < self._limits.max_running and (entry := self._line.next(landed=full)) is not None:
            if entry.phase is Phase.WAITING:
                full = self._full = not self._take_pages(entry)
                if full:
                    continue
                self._passed = 0
            self._line.take(entry)
            events.append(Admitted(entry.sequence.id, entry.local, entry.computed - entry.local))
            self._start(entry)
        reserving = sorted(self._reserving, key=lambda entry: entry.sequence.priority)
        self._reserving.clear()
        return events + [self._reserve(entry) for entry in reserving]

    def _take_pages(self, entry: Entry) -> bool:
        """Whether there is room for it; what of it the prefix cache has needs no computing."""
        taken = self.pool.try_take(self._reusable(entry), self._pages(entry.target))
        if taken is None:
            return False
        entry.table, hits = taken
        self.pool.taken_by(entry.table[:hits], entry.sequence.session)
        entry.local = entry.computed = min(hits * self._spec.page_tokens, entry.target)
        return True

    def land(self, sequence: SequenceId, frame: Frame) -> int | None:
        """The pool page that `frame` belongs into, or None when nobody waits for it any more.

        The caller writes it before anything else happens to the batcher; the page counts as landed from here on.
        """
        entry = self._entries.get(sequence)
        if entry is None or entry.phase is not Phase.AWAITING or frame.index in entry.landed:
            return None
        first = entry.local // self._spec.page_tokens
        if not first <= frame.index < len(entry.table):
            return None
        if frame.page != self._expected(entry, frame.index, frame.valid_tokens):
            raise InvariantViolation(8, f"frame {frame.index} of {sequence} has another identity than its page")
        entry.landed[frame.index] = frame.valid_tokens
        self.pool.landed(entry.table[frame.index])
        return entry.table[frame.index]

    def run(self, sequence: SequenceId) -> None:
        """Let a sequence that awaited frames decode; what did not land is computed here."""
        entry = self._entries.get(sequence)
        if entry is None:
            return
        if entry.phase is not Phase.AWAITING:
            raise InvariantViolation(16, f"sequence {sequence} was run twice")
        entry.computed = self._landed_tokens(entry)
        for index in range(entry.local // self._spec.page_tokens, len(entry.table)):
            if index not in entry.landed:
                self.pool.landed(entry.table[index])
        self._publish(entry)
        entry.phase = Phase.LANDED
        self._line.add(entry)

    def plan(self) -> tuple[Chunk, ...]:
        """The next step: at most `step_tokens` tokens, every sequence at most once."""
        size = self._spec.page_tokens
        chunks: dict[SequenceId, Chunk] = {}
        decoding: list[Entry] = []
        prefilling: list[Entry] = []
        for entry in self._running:
            left = entry.target - entry.computed
            if left > 0:
                (decoding if left == 1 else prefilling).append(entry)
        decoding.sort(key=lambda entry: entry.sequence.priority)
        prefilling.sort(key=lambda entry: (entry.sequence.priority, self._served.tokens(entry)))
        budget = min(len(decoding), self._limits.step_tokens)
        budget += self._budget.prefill_tokens(budget)
        scores = max(_SCORED_LOGITS // self._spec.vocab, 1)
        for entry in decoding + prefilling:
            if budget == 0:
                break
            end = min(entry.computed + budget, entry.end(scores))
            if entry.phase is not Phase.RUNNING or end <= entry.computed:
                continue
            if end > len(entry.table) * size and not self._grow(entry, end, chunks):
                continue
            chunk = chunks[entry.sequence.id] = entry.chunk(end, size)
            budget -= len(chunk.tokens)
            scores -= len(chunk.score.targets) if chunk.score else 0
        planned = tuple(chunks.values())
        run = sum([len(chunk.tokens) for chunk in planned])
        decoded = sum([entry.sequence.id in chunks for entry in decoding])
        self._planned = (run - decoded, decoded)
        return planned

    def took(self, seconds: float) -> None:
        """How long the step that was planned last ran."""
        self._budget.took(*self._planned, seconds)

    def computed(self, chunk: Chunk) -> None:
        """The step ran: the chunk's tokens have KV."""
        entry = self._entries[chunk.sequence]
        entry.advance(chunk.start + len(chunk.tokens))
        self._served.ran(entry, entry.computed)
        self._publish(entry)

    def append(self, sequence: SequenceId, token: int) -> None:
        """A sampled token joins its sequence, to be run in the next step."""
        entry = self._entries[sequence]
        entry.tokens.append(token)
        entry.target += 1

    def completing(self, chunks: Iterable[Chunk]) -> list[tuple[SequenceId, tuple[int, ...], list[Ready]]]:
        """For each `Prefill` of these chunks that goes out layer by layer: its cuts, and the pages of it that are not
        exported yet and complete once the chunk has run."""
        found = []
        for chunk in chunks:
            entry = self._entries[chunk.sequence]
            if isinstance(entry.work, Prefill) and entry.work.cuts:
                ready = self._ready(entry, entry.work, chunk.start + len(chunk.tokens))
                if ready:
                    found.append((chunk.sequence, entry.work.cuts, ready))
        return found

    def exports(self) -> list[tuple[SequenceId, list[Ready], bool]]:
        """For each `Prefill` in the batch: its pages newly complete, and whether that was all of them."""
        found = []
        for entry in self._running:
            if isinstance(entry.work, Prefill):
                ready = self._ready(entry, entry.work, entry.computed)
                if ready:
                    entry.exported = ready[-1].index + 1
                done = entry.computed >= entry.work.upto
                if ready or done:
                    found.append((entry.sequence.id, ready, done))
        return found

    def drain_filled(self) -> tuple[Filled, ...]:
        """The pages that became full, or were found in the cache, since the last call."""
        filled, self._filled = tuple(self._filled), []
        return filled

    def finish(self, sequence: SequenceId) -> Granted | None:
        """A sequence that decoded has come to its end, and is removed next: what is kept for its session, if asked."""
        entry = self._entries[sequence]
        asked = entry.sequence
        if asked.session is None:
            return None
        self.pool.ended(sequence, entry.table)
        if asked.keep is None:
            return None
        return self.pool.grant(sequence, asked.session, asked.salt, entry.table[: entry.published], asked.keep)

    def remove(self, sequence: SequenceId) -> bool:
        """Forget a finished, failed or cancelled sequence and free what it held; pages with a known id stay cached."""
        entry = self._entries.pop(sequence, None)
        if entry is None:
            return False
        if entry.phase is Phase.AWAITING:
            self._publish(entry, upto=self._landed_tokens(entry))
        for queue in (self._reserving, self._running):
            if entry in queue:
                queue.remove(entry)
        self._line.remove(entry)
        self._served.leaves(entry)
        self.pool.release(entry.table)
        self._full = False
        return True

    def check(self) -> None:
        """Invariant 16: the pool adds up, and its references are exactly the block tables of the sequences here."""
        self.pool.check()
        held = Counter(page for entry in self._entries.values() for page in entry.table)
        total = self.pool.occupancy()
        if len(held) != total.owned + total.landing:
            raise InvariantViolation(16, f"{len(held)} pages are in block tables, the pool says {total}")
        phases = Counter(entry.phase for entry in self._entries.values())
        queues = (len(self._running), len(self._line) + len(self._reserving))
        if (phases[Phase.RUNNING], phases[Phase.LANDED] + phases[Phase.WAITING]) != queues:
            raise InvariantViolation(16, f"the sequences are {phases}, the queues hold {queues}")

    def _pages(self, tokens: int) -> int:
        return pages_for(tokens, self._spec.page_tokens)

    def _extend(self, entry: Entry) -> None:
        extend_chain(entry.chain, entry.sequence.salt, entry.tokens, self._spec.page_tokens, self._spec.kv_fingerprint)

    def _reusable(self, entry: Entry) -> list[PageId]:
        """The ids worth looking up."""
        return entry.chain[: entry.reusable // self._spec.page_tokens]

    def _expected(self, entry: Entry, index: int, valid_tokens: int) -> PageId:
        if valid_tokens == self._spec.page_tokens:
            return entry.chain[index] if index < len(entry.chain) else ROOT
        start = index * self._spec.page_tokens
        parent = entry.chain[index - 1] if index else ROOT
        tokens = entry.tokens[start : start + valid_tokens]
        return page_id(entry.sequence.salt, parent, tokens, self._spec.page_tokens, self._spec.kv_fingerprint)

    def _reserve(self, entry: Entry) -> StepEvent:
        waits, taken = self._full and self._line.has(Phase.WAITING), None
        if not (self._line.preempted or (waits and (entry.sparing or self._passed >= SHARE))):
            pages, sparing = self._pages(entry.target), entry.sparing
            taken = self.pool.try_take(self._reusable(entry), pages, landing=True, sparing=sparing)
        if taken is None:
            del self._entries[entry.sequence.id]
            self._served.leaves(entry)
            return NoRoom(entry.sequence.id)
        self._passed += waits
        entry.table, hits = taken
        self.pool.taken_by(entry.table[:hits], entry.sequence.session)
        entry.local = hits * self._spec.page_tokens
        entry.phase = Phase.AWAITING
        return Reserved(entry.sequence.id, entry.local)

    def _landed_tokens(self, entry: Entry) -> int:
        """Tokens with KV from the start without a gap, without those that must run here, as the last one must."""
        tokens = entry.local
        for index in range(entry.local // self._spec.page_tokens, len(entry.table)):
            valid = entry.landed.get(index, 0)
            tokens += valid
            if valid < self._spec.page_tokens:
                break
        return min(tokens, entry.reusable)

    def _start(self, entry: Entry) -> None:
        entry.phase = Phase.RUNNING
        self._running.append(entry)

    def _publish(self, entry: Entry, upto: int | None = None) -> None:
        """Give every page that is now full its id, so that others may share it."""
        full = (entry.computed if upto is None else upto) // self._spec.page_tokens
        if full <= entry.published:
            return
        self._extend(entry)
        parent = before = entry.chain[entry.published - 1] if entry.published else ROOT
        for index in range(entry.published, full):
            cost = recomputing(index * self._spec.page_tokens)
            entry.table[index] = self.pool.publish(entry.table[index], entry.chain[index], before, cost)
            before = entry.chain[index]
        pages = tuple(entry.chain[entry.published : full])
        sequence = entry.sequence
        self._filled.append(Filled(pages, entry.published, parent, sequence.salt, sequence.session))
        self.pool.read_by(entry.table[entry.published : full], entry.sequence.session)
        entry.published = full

    def _grow(self, entry: Entry, tokens: int, planned: dict[SequenceId, Chunk]) -> bool:
        """Make the block table cover `tokens`, preempting others if need be; False when this one was preempted."""
        while (missing := self._pages(tokens) - len(entry.table)) > 0:
            taken = self.pool.try_take((), missing)
            if taken is not None:
                entry.table.extend(taken[0])
                return True
            spared = [other for other in reversed(self._running) if other.sequence.id not in planned]
            victim = max(spared, key=lambda other: other.sequence.priority)
            self._preempt(victim)
            if victim is entry:
                return False
        return True

    def _preempt(self, entry: Entry) -> None:
        self._running.remove(entry)
        self.pool.release(entry.table)
        entry.table, entry.computed, entry.published = [], 0, 0
        entry.phase = Phase.WAITING
        self._line.add_preempted(entry)
        self._full = False

    def _ready(self, entry: Entry, work: Prefill, computed: int) -> list[Ready]:
        """The pages of it that are complete with so many tokens, and not exported."""
        size = self._spec.page_tokens
        ready = [
            Ready(index, entry.table[index], size, entry.chain[index])
            for index in range(entry.exported, computed // size)
        ]
        tail = work.upto % size
        last = work.upto // size
        if tail and computed >= work.upto and entry.exported <= last:
            ready.append(Ready(last, entry.table[last], tail, self._expected(entry, last, tail)))
        return ready
