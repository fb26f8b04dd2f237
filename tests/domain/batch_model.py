"""A batcher with the KV it would have: every position of every page remembers the whole prefix it was computed for."""

from collections.abc import Sequence as Many

from runtime.domain.batching import Batcher, Limits
from runtime.domain.messages import TicketPage
from runtime.domain.pages import ROOT, PagePool, extend_chain, page_id
from runtime.domain.sequence import Sampling, Sequence
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Chunk, Frame, StepEvent, Work
from runtime.ids import PageId, SequenceId

PAGE = 2
SALT = b"salt"
SPEC = ModelSpec("m", 1, 1, 1, "float32", 1000, 1000, PAGE, "f" * 32, "e" * 32)


def sequence(name: str, tokens: Many[int], salt: bytes = SALT, priority: int = 0) -> Sequence:
    return Sequence(SequenceId(name), tuple(tokens), Sampling(max_tokens=8), salt, priority=priority)


def chain_of(tokens: Many[int]) -> list[PageId]:
    return extend_chain([], SALT, tokens, PAGE, SPEC.kv_fingerprint)


def ticket_pages(tokens: Many[int]) -> list[TicketPage]:
    """All that a decode worker may get for a prompt: every token but the last."""
    full, tail = divmod(len(tokens) - 1, PAGE)
    chain = chain_of(tokens)
    pages = [TicketPage(index, chain[index], PAGE) for index in range(full)]
    if tail:
        parent = chain[full - 1] if full else ROOT
        rest = tokens[full * PAGE : full * PAGE + tail]
        pages.append(TicketPage(full, page_id(SALT, parent, rest, PAGE, SPEC.kv_fingerprint), tail))
    return pages


class Model:
    """Drives a batcher as an engine does and holds what it computes against what it should."""

    def __init__(self, pages: int = 16, *, step_tokens: int = 4, max_running: int = 2) -> None:
        self.limits = Limits(step_tokens, max_running)
        self.batcher = Batcher(SPEC, PagePool(pages), self.limits)
        self.tokens: dict[SequenceId, list[int]] = {}
        self._kv: dict[tuple[int, int], tuple[int, ...]] = {}

    def submit(self, name: str, tokens: Many[int], work: Work, *, salt: bytes = SALT, priority: int = 0) -> SequenceId:
        ident = SequenceId(name)
        self.tokens[ident] = list(tokens)
        self.batcher.submit(sequence(name, tokens, salt, priority), work)
        return ident

    def land(self, ident: SequenceId, page: TicketPage) -> bool:
        """Whether the frame of this page was wanted."""
        target = self.batcher.land(ident, Frame(page.id, page.index, page.valid_tokens, b""))
        if target is None:
            return False
        first = page.index * PAGE
        for offset in range(page.valid_tokens):
            self._kv[target, offset] = tuple(self.tokens[ident][: first + offset + 1])
        return True

    def admit(self) -> list[StepEvent]:
        return self.batcher.admit()

    def step(self) -> tuple[tuple[Chunk, ...], list[StepEvent]]:
        """One engine step without sampling; every chunk is checked for its place and for the KV that it attends to."""
        events = self.batcher.admit()
        chunks = self.batcher.plan()
        assert sum(len(chunk.tokens) for chunk in chunks) <= self.limits.step_tokens
        assert len({chunk.sequence for chunk in chunks}) == len(chunks)
        assert self.batcher.load().running <= self.limits.max_running
        for chunk in chunks:
            self._compute(chunk)
        for chunk in chunks:
            self.batcher.computed(chunk)
        return chunks, events

    def append(self, ident: SequenceId, token: int) -> None:
        self.tokens[ident].append(token)
        self.batcher.append(ident, token)

    def expect_kv(self, ident: SequenceId, index: int, page: int, valid_tokens: int) -> None:
        """A pool page holds what page `index` of a sequence should."""
        for offset in range(valid_tokens):
            self._expect(ident, index * PAGE + offset, page)

    def _compute(self, chunk: Chunk) -> None:
        tokens, end = self.tokens[chunk.sequence], chunk.start + len(chunk.tokens)
        assert chunk.tokens == tuple(tokens[chunk.start : end])
        assert len(chunk.table) == -(-end // PAGE)
        for position in range(chunk.start):
            self._expect(chunk.sequence, position, chunk.table[position // PAGE])
        for position in range(chunk.start, end):
            self._kv[chunk.table[position // PAGE], position % PAGE] = tuple(tokens[: position + 1])

    def _expect(self, ident: SequenceId, position: int, page: int) -> None:
        found, expected = self._kv.get((page, position % PAGE)), tuple(self.tokens[ident][: position + 1])
        assert found == expected, f"{ident}: position {position} in page {page} is of {found}"
