"""One engine, step by step: commands in, one `StepOutput` per step out. Synchronous; whoever drives it owns the thread.

Joins the batcher (which tokens), the compute (their KV and the next token) and the output streams (text and stops).
The native and the simulated engine differ only in their compute and in who drives them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from runtime.domain.batching import Batcher, Limits
from runtime.domain.grammar import Grammar
from runtime.domain.grants import Grants
from runtime.domain.pages import PagePool
from runtime.domain.records import quick
from runtime.domain.scoring import PromptScores, joined
from runtime.domain.sequence import FinishReason, Sampled, Sampling, Sequence
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import (
    Admitted,
    Cancel,
    Chunk,
    Copied,
    Copy,
    EngineCommand,
    Expect,
    Exported,
    Forget,
    Forgotten,
    Frame,
    Generated,
    Land,
    LetGo,
    Load,
    NoRoom,
    Prefill,
    Prefilled,
    Run,
    SequenceFailed,
    StepEvent,
    StepOutput,
    Submit,
    Work,
)
from runtime.engine.grammar import Constraint, Grammars
from runtime.engine.history import History
from runtime.engine.layers import LayerExports, Layerwise
from runtime.engine.output import OutputStream
from runtime.errors import BatonError, ContextExceeded, InvalidArgument, NotSupported
from runtime.ids import PageId, SequenceId, SessionId
from runtime.ports import TextDecoder

if TYPE_CHECKING:
    from concurrent.futures import Future

    from llguidance import LLMatcher


@quick
@dataclass(frozen=True, slots=True)
class SampleRow:
    """How to sample the row of one chunk; `position` is the absolute index of the token to be sampled. `history` is
    there when the sampling looks at the tokens before."""

    sampling: Sampling
    position: int
    history: History | None = None


class Compute(Protocol):
    """A model on a device: what differs between the native and the simulated engine."""

    def run(self, chunks: tuple[Chunk, ...], rows: tuple[SampleRow, ...]) -> tuple[list[Sampled], list[PromptScores]]:
        """Write the chunks' KV; sample one token for each chunk that asks for it (as many as `rows`), and score each
        that asks for that, both in order."""

    def read_pages(self, pages: Iterable[tuple[int, int]]) -> list[bytes]:
        """Of each pool page and number of tokens, the canonical payload of that many tokens from its first on."""

    def write_page(self, page: int, payload: bytes | memoryview, tokens: int) -> None: ...

    def watch(self) -> None:
        """Raise `EngineFailed` when it can run nothing any more; asked now and then while there is nothing to run."""

    def close(self) -> None:
        """Let go of what is not this process's own; nothing is run any more."""


@dataclass(slots=True)
class _Live:
    """What the core keeps of a sequence beside its place in the batch."""

    sequence: Sequence
    work: Work
    output: OutputStream | None = None
    history: History | None = None
    generated: int = 0
    cached: int = 0
    scores: list[PromptScores] | None = None

    def push(self, token: int) -> str:
        """One more token of the output, forced or sampled; the text that it completes.

        Raises `InvalidArgument` when its grammar gave up.
        """
        assert self.output is not None, "a prefill has no output"
        if self.history is None:
            return self.output.push(token)
        self.history.push(token)
        constraint = self.history.constraint
        if constraint is None:
            return self.output.push(token)
        if constraint.error is not None:
            raise constraint.error
        text = self.output.push(token)
        return text + self.output.end() if constraint.ended and self.output.finish is None else text

    @property
    def finish(self) -> FinishReason | None:
        return None if self.output is None else self.output.finish

    def scored(self) -> PromptScores | None:
        """All scores of the prompt, to be told once."""
        scores, self.scores = self.scores, None
        return None if scores is None else joined(self.sequence.scored or 0, scores)


class EngineCore:
    def __init__(
        self,
        spec: ModelSpec,
        pages: int,
        limits: Limits,
        compute: Compute,
        eos_ids: frozenset[int],
        decoder: Callable[[], TextDecoder],
        grammars: Grammars | None = None,
        *,
        scores: bool = True,
        layerwise: Layerwise | None = None,
        now: Callable[[], float] = monotonic,
    ) -> None:
        """Without `grammars`, sequences that ask for one are refused; without `scores` those that ask for
        log-probabilities of their prompt; without `layerwise` pages are exported whole. `now` gives monotonic
        seconds."""
        # A context is no longer than the pool: a sequence that outgrew it would wait for ever.
        self.spec = replace(spec, max_tokens=min(spec.max_tokens, pages * spec.page_tokens))
        self._batcher = Batcher(spec, PagePool(pages, now), limits)
        self._compute = compute
        self._eos_ids = eos_ids
        self._decoder = decoder
        self._grammars = grammars
        self._scores = scores
        self._live: dict[SequenceId, _Live] = {}
        self._early: list[StepEvent] = []
        self._copied: list[Copied] = []
        self._step = 0
        self._freed = False
        self._forgotten: list[Forgotten] = []
        self._layers = None if layerwise is None else LayerExports(spec, layerwise, self._tell)
        self.take_early: Callable[[StepOutput], bool] = lambda _: False
        """Whoever drives it may put something here that takes what a step brought while it still runs, on the thread
        that runs it, and says whether it did; what it did not take comes with the end of the step."""

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do or to tell."""
        told = self._early or self._forgotten or self._copied or self._batcher.pool.grants.changed
        return self._batcher.busy or bool(told) or self._freed

    def match(self, chain: Iterable[PageId]) -> int:
        return self._batcher.pool.match(tuple(chain))

    @property
    def grants(self) -> Grants:
        """What is kept for sessions that are away."""
        return self._batcher.pool.grants

    def load(self) -> Load:
        return self._batcher.load()

    def pages_of(self, session: SessionId) -> int:
        return self._batcher.pool.pages_of(session)

    def check(self) -> None:
        self._batcher.check()

    def compile(self, grammar: Grammar) -> "Future[LLMatcher] | None":
        """Begin to compile what a `Submit` is going to need, off this thread; callable from any. Done, or None, when
        `apply` will not wait for it."""
        return None if self._grammars is None else self._grammars.begin(grammar)

    def watch(self) -> None:
        """Raise `EngineFailed` when the device is gone; for whoever drives an engine that has nothing to do."""
        self._compute.watch()

    def close(self) -> None:
        """Let the threads of `compile` and the device end; nothing is told to it any more."""
        if self._grammars is not None:
            self._grammars.close()
        self._compute.close()

    def apply(self, command: EngineCommand) -> None:
        match command:
            case Submit(sequence, work):
                self._submit(sequence, work)
            case Land(sequence, frame):
                self._land(sequence, frame)
            case Run(sequence):
                self._batcher.run(sequence)
            case Cancel(sequence):
                self._remove(sequence)
            case Copy(pages, asker):
                self._copy(pages, asker)
            case Forget(session):
                self._forgotten.append(Forgotten(session, *self._batcher.pool.forget(session)))
            case Expect() | LetGo():
                self._left(command)

    def step(self) -> StepOutput:
        """Admit, run one batch, and report."""
        events, self._early = self._early, []
        events += self._admit()
        chunks = self._batcher.plan()
        if self._layers is not None:
            self._layers.begin(self._batcher.completing(chunks))
        if chunks:
            events += self._run(chunks)
        events += self._export()
        self._step += 1
        freed, self._freed = self._freed, False
        forgotten, self._forgotten = self._forgotten, []
        stored, removed = self._batcher.pool.drain_changes()
        filled, copied = self._batcher.drain_filled(), tuple(self._copied)
        self._copied = []
        ran = prefilled = reached = 0
        for chunk in chunks:
            tokens = len(chunk.tokens)
            ran += tokens
            if tokens > 1:
                prefilled += tokens
                reached = max(reached, chunk.start + tokens)
        return StepOutput(
            self._step, tuple(events), self.load(), ran, len(chunks), freed, stored, removed,
            tuple(forgotten), filled, copied, prefilled, reached,
            keeping=self._batcher.pool.grants.drain_changes(),
        )  # fmt: skip

    def took(self, seconds: float) -> None:
        """How long the last step took: what the next ones may carry is learnt from it."""
        self._batcher.took(seconds)

    def _left(self, command: Expect | LetGo) -> None:
        """What is told of a sequence that has ended."""
        match command:
            case Expect(sequence, returns_s):
                self._batcher.pool.expect(sequence, returns_s)
            case LetGo(sequence):
                self._batcher.pool.let_go(sequence)

    def _submit(self, sequence: Sequence, work: Work) -> None:
        live = _Live(sequence, work, generated=len(sequence.forced))
        live.scores = None if sequence.scored is None else []
        try:
            self._check(sequence)
            if not isinstance(work, Prefill):
                self._open(live)
        except BatonError as error:
            self._early.append(SequenceFailed(sequence.id, error))
            return
        if live.finish is not None:
            self._early.append(Generated(sequence.id, live.generated, (), "", live.finish))
        else:
            self._batcher.submit(sequence, work)
            self._live[sequence.id] = live

    def _open(self, live: _Live) -> None:
        """Its output, brought to where the forced tokens left it. Raises `InvalidArgument` for what cannot be."""
        sequence, sampling = live.sequence, live.sequence.sampling
        live.output = OutputStream(sampling, self._eos_ids, self._decoder())
        if History.needed(sampling):
            constraint = None if sampling.grammar is None else self._start(sampling.grammar)
            live.history = History(sampling, sequence.prompt, self._eos_ids, constraint)
        for count, token in enumerate(sequence.forced, 1):
            live.push(token)
            if live.finish is not None and count < len(sequence.forced):
                forced = f"{len(sequence.forced)} tokens are forced, but token {count} ends the answer"
                raise InvalidArgument(forced, field="forced")

    def _start(self, grammar: Grammar) -> Constraint:
        if self._grammars is None:
            raise NotSupported("grammar is not supported by this engine", field="grammar")
        return self._grammars.start(grammar)

    def _check(self, sequence: Sequence) -> None:
        """Refuse what is never let in: it could wait for more pages than there are, or ask the model for what it has
        not."""
        prompt, most, room = len(sequence.prompt), sequence.sampling.max_tokens, self.spec.max_tokens
        if prompt + most > room:
            raise ContextExceeded(
                f"the prompt has {prompt} tokens and max_tokens is {most}, together more than the {room} tokens that "
                f"this worker has room for",
                field="max_tokens" if prompt < room else "prompt",
            )
        sequence.sampling.check_prompt(prompt)
        if sequence.scored is not None and not self._scores:
            raise NotSupported("prompt_logprobs is not supported by this engine", field="prompt_logprobs")
        if max(sequence.tokens, default=0) >= self.spec.vocab:
            raise InvalidArgument(f"a token id is outside the vocabulary of {self.spec.vocab}", field="prompt")
        sequence.sampling.check_vocabulary(self.spec.vocab)

    def _land(self, sequence: SequenceId, frame: Frame) -> None:
        page = self._batcher.land(sequence, frame)
        if page is not None:
            self._compute.write_page(page, frame.payload, frame.valid_tokens)

    def _copy(self, pages: tuple[PageId, ...], asker: str) -> None:
        here = {page: number for page in pages if (number := self._batcher.pool.find(page)) is not None}
        payloads = self._compute.read_pages((number, self.spec.page_tokens) for number in here.values())
        found = dict(zip(here, payloads, strict=True))
        self._copied.extend(Copied(page, found.get(page), asker) for page in pages)

    def _admit(self) -> list[StepEvent]:
        events = self._batcher.admit()
        for event in events:
            if isinstance(event, NoRoom):
                del self._live[event.sequence]
            elif isinstance(event, Admitted):
                self._live[event.sequence].cached = event.cached_tokens
        return events

    def _run(self, chunks: tuple[Chunk, ...]) -> list[StepEvent]:
        sampling = [chunk for chunk in chunks if chunk.sample]
        rows = tuple(self._row(chunk) for chunk in sampling)
        sampled, scored = self._compute.run(chunks, rows)
        for chunk, scores in zip([chunk for chunk in chunks if chunk.score], scored, strict=True):
            self._keep(chunk.sequence, scores)
        for chunk in chunks:
            self._batcher.computed(chunk)
        return [self._generated(chunk.sequence, token) for chunk, token in zip(sampling, sampled, strict=True)]

    def _keep(self, sequence: SequenceId, scores: PromptScores) -> None:
        kept = self._live[sequence].scores
        assert kept is not None, "only those that ask are scored"
        kept.append(scores)

    def _row(self, chunk: Chunk) -> SampleRow:
        live = self._live[chunk.sequence]
        return SampleRow(live.sequence.sampling, chunk.start + len(chunk.tokens), live.history)

    def _generated(self, sequence: SequenceId, sampled: Sampled) -> Generated | SequenceFailed:
        live = self._live[sequence]
        try:
            text = live.push(sampled.token)
        except InvalidArgument as error:
            self._remove(sequence)
            return SequenceFailed(sequence, error)
        event = Generated(sequence, live.generated, (sampled,), text, live.finish, live.scored())
        live.generated += 1
        if live.finish is None:
            self._batcher.append(sequence, sampled.token)
            return event
        kept = self._batcher.finish(sequence)
        self._remove(sequence)
        return event if kept is None else replace(event, kept=kept)

    def _tell(self, events: Iterable[StepEvent]) -> bool:
        """What is there before the step is over."""
        return self.take_early(StepOutput(self._step + 1, tuple(events), self.load()))

    def _export(self) -> list[StepEvent]:
        layers = self._layers
        events: list[StepEvent] = [] if layers is None else layers.end()
        for sequence, ready, done in self._batcher.exports():
            if layers is None or not layers.told(sequence):
                payloads = self._compute.read_pages((page.page, page.valid_tokens) for page in ready)
                for page, payload in zip(ready, payloads, strict=True):
                    events.append(Exported(sequence, Frame(page.id, page.index, page.valid_tokens, payload)))
            if done:
                events.append(Prefilled(sequence, self._live[sequence].cached))
                self._remove(sequence)
        return events

    def _remove(self, sequence: SequenceId) -> None:
        if self._live.pop(sequence, None) is not None:
            self._freed |= self._batcher.remove(sequence)
