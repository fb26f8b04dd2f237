"""A simulated engine: real batching, paging, prefix cache and text, no tensors; step times from a profile.

Its KV is real in the one respect that matters: the value of a position is a function of the whole prefix, and the next
token is a function of all values that the block table reaches. So a wrong, stale or overwritten page changes the text,
and an unharmed run is repeated exactly.
"""

import asyncio
import codecs
import hashlib
import json
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from llguidance import LLTokenizer, TokenizerWrapper

from runtime.clock import Clock
from runtime.domain.batching import Limits
from runtime.domain.call_forms import FORMS
from runtime.domain.scoring import PromptScores, Score
from runtime.domain.sequence import Sampled, Sampling
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Chunk, EngineCommand, Load, StepOutput
from runtime.engine.core import EngineCore, SampleRow
from runtime.engine.grammar import Grammars
from runtime.engine.history import History
from runtime.engine.simulated_kv import KvShape, payloads_of
from runtime.errors import InvalidArgument
from runtime.ids import PageId, SessionId

_WORDS = (
    "alfa bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey xray yankee zulu"
)
WORDS = tuple(f" {word}" for word in _WORDS.split())
EOS = 256
_FIRST_WORD = 257
VOCAB = _FIRST_WORD + len(WORDS)
_NARROW = KvShape()
_MASK = (1 << 64) - 1
_FACTOR = 0x9E3779B97F4A7C15


def simulated_spec(name: str, page_tokens: int, max_tokens: int, shape: KvShape = _NARROW) -> ModelSpec:
    """The spec of a simulated model: by default 8 bytes of KV per token. Models of different names or shapes differ in
    fingerprint."""
    named = f"simulated:{name}" if shape == _NARROW else f"simulated:{name}:{shape}"
    fingerprint = hashlib.blake2b(named.encode(), digest_size=16).hexdigest()
    return ModelSpec(
        name=name,
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        dtype=shape.dtype,
        vocab=VOCAB,
        max_tokens=max_tokens,
        page_tokens=page_tokens,
        kv_fingerprint=fingerprint,
        serving_fingerprint=fingerprint,
    )


class SimulatedTokenizer:
    """Bytes in; bytes and whole words out. Chat messages become `role: content` lines."""

    eos_ids = frozenset({EOS})
    vocabulary = "simulated"
    call_form = FORMS["hermes"]

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_within(self, text: str) -> list[int]:
        """A known word after a space is a token of its own, as the engine says it."""
        return [_FIRST_WORD + WORDS.index(text)] if text in WORDS else self.encode(text)

    def render_chat(self, messages: Sequence[dict[str, object]], tools: Sequence[dict[str, object]] = ()) -> list[int]:
        if not messages:
            raise InvalidArgument("messages must not be empty", field="messages")
        head = f"tools: {json.dumps([*tools])}\n" if tools else ""
        return self.encode(f"{head}{''.join(map(_line, messages))}assistant:")

    def no_deltas(self) -> str | None:
        return None

    def render_delta(
        self,
        preamble: Sequence[dict[str, object]],
        messages: Sequence[dict[str, object]],
        tools: Sequence[dict[str, object]] = (),
    ) -> list[int]:
        """Tools are told at the beginning."""
        return self.encode("\n") + self.render_chat(messages)

    def no_tools(self) -> str | None:
        return None

    def no_results(self) -> str | None:
        return None

    def special(self, text: str) -> int | None:
        return None

    def decoder(self) -> "SimulatedDecoder":
        return SimulatedDecoder()


def _line(message: dict[str, object]) -> str:
    calls = message.get("tool_calls")
    return f"{message['role']}: {message['content']}{json.dumps(calls) if calls else ''}\n"


class SimulatedDecoder:
    """The bytes of a character may come one by one; an end of turn has no text."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(_spelled(token))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


def _spelled(token: int) -> bytes:
    if token == EOS:
        return b""
    return WORDS[token - _FIRST_WORD].encode() if token >= _FIRST_WORD else bytes([token])


class _Vocabulary:
    """What the grammars' library asks of a tokenizer."""

    eos_token_id = EOS
    bos_token_id = None
    special_token_ids = (EOS,)
    tokens = tuple(b"<eos>" if token == EOS else _spelled(token) for token in range(VOCAB))

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def simulated_grammars() -> Grammars:
    """Grammars over the simulated tokenizer's vocabulary."""
    return Grammars(lambda: LLTokenizer(TokenizerWrapper(_Vocabulary()), VOCAB, EOS))


def _mix(previous: int, token: int) -> int:
    value = ((previous ^ token) * _FACTOR + 0x632BE59BD9B4E019) & _MASK
    return value ^ (value >> 29)


def _choose(digest: int, row: SampleRow) -> Sampled:
    """Every word is as likely as any other, so that of all options but the seed only bans and grammars have something
    to change. Where a grammar allows no word, every character that it allows is as likely as any other."""
    seed = row.sampling.seed if row.sampling.temperature > 0 else 0
    draw = _mix(_mix(digest, seed), row.position) >> 17
    if row.history is None:
        return Sampled(_FIRST_WORD + draw % len(WORDS))
    allowed = _allowed(row.history)
    words = [token for token in allowed if token >= _FIRST_WORD]
    ascii_only = [token for token in allowed if token < 128 or token == EOS]
    left = words or ascii_only or allowed or [EOS]
    return Sampled(left[draw % len(left)])


def _scores(values: Sequence[int], wanted: Score) -> PromptScores:
    """Nothing that the choices above are made by, but a function of the whole prefix all the same."""
    digests = [_mix(value, token) for value, token in zip(values, wanted.targets, strict=True)]
    return PromptScores(
        wanted.top,
        tuple([-float(digest >> 40) / (1 << 20) for digest in digests]),
        tuple([digest % VOCAB + 1 for digest in digests]),
        tuple([(digest + place) % VOCAB for digest in digests for place in range(wanted.top)]),
        tuple([-float(place) for _ in digests for place in range(wanted.top)]),
    )


def prompt_scores(prompt: Sequence[int], top: int) -> PromptScores:
    """What an unharmed engine says of a prompt: the oracle of tests and simulations."""
    values = list(accumulate(prompt, _mix, initial=0))[1:-1]
    return _scores(values, Score(tuple(prompt[1:]), top))


def _allowed(history: History) -> list[int]:
    """The tokens that may come next; bans that would leave none are void."""
    forbidden = set(history.forbidden())
    mask = None if history.constraint is None else history.constraint.mask()
    tokens = range(_FIRST_WORD, VOCAB)
    allowed = [*tokens] if mask is None else [token for token in range(VOCAB) if mask[token >> 3] >> (token & 7) & 1]
    return [token for token in allowed if token not in forbidden] or allowed


def continuation(prompt: Sequence[int], sampling: Sampling) -> list[int]:
    """The tokens that an unharmed engine gives for `prompt`, with anything but a grammar: the oracle of tests and
    simulations."""
    tokens, total, value = list(prompt), 0, 0
    history = History(sampling, prompt, frozenset({EOS})) if History.needed(sampling) else None
    for token in tokens:
        value = _mix(value, token)
        total += value
    for _ in range(sampling.max_tokens):
        chosen = _choose((total + value) & _MASK, SampleRow(sampling, len(tokens), history)).token
        tokens.append(chosen)
        if history is not None:
            history.push(chosen)
        value = _mix(value, chosen)
        total += value
    return tokens[len(prompt) :]


class SimulatedCompute:
    """One 64-bit value per token and page slot, in place of keys and values; as pages they have a `shape`."""

    def __init__(self, pages: int, page_tokens: int, shape: KvShape = _NARROW) -> None:
        self._size = page_tokens
        self._layers = shape.layers
        self._payloads = payloads_of(shape)
        self._written: Callable[[int], None] = lambda _: None
        self._values = [array("Q", bytes(8 * page_tokens)) for _ in range(pages)]
        self._sums = [0] * pages

    def run(self, chunks: tuple[Chunk, ...], rows: tuple[SampleRow, ...]) -> tuple[list[Sampled], list[PromptScores]]:
        sampled, scored = [], []
        pending = iter(rows)
        for chunk in chunks:
            value = self._write(chunk)
            if chunk.sample:
                row = next(pending)
                digest = (self._reach(chunk) + value) & _MASK
                sampled.append(_choose(digest, row))
            if chunk.score is not None:
                scored.append(_scores(self._wanted(chunk), chunk.score))
        for layer in range(self._layers):
            self._written(layer)
        return sampled, scored

    def listen(self, written: Callable[[int], None]) -> None:
        self._written = written

    def read_pages(self, pages: Iterable[tuple[int, int]]) -> list[bytes]:
        return self.read_layers(pages, range(self._layers))

    def read_layers(self, pages: Iterable[tuple[int, int]], layers: range) -> list[bytes]:
        return [self._payloads.of(self._values[page][:tokens], len(layers)) for page, tokens in pages]

    def write_page(self, page: int, payload: bytes | memoryview, tokens: int) -> None:
        values = self._values[page]
        values[:tokens] = array("Q", self._payloads.values(payload, tokens))
        self._sums[page] = sum(values)

    def watch(self) -> None:
        """Nothing can happen to it."""

    def close(self) -> None:
        """It holds nothing."""

    def _write(self, chunk: Chunk) -> int:
        """Store the chunk's values, and return that of its last token."""
        size, table, position = self._size, chunk.table, chunk.start
        value = self._values[table[(position - 1) // size]][(position - 1) % size] if position else 0
        for token in chunk.tokens:
            value = _mix(value, token)
            page = table[position // size]
            values = self._values[page]
            self._sums[page] += value - values[position % size]
            values[position % size] = value
            position += 1
        return value

    def _wanted(self, chunk: Chunk) -> list[int]:
        """The values of the tokens whose followers are scored."""
        end = chunk.start + len(chunk.tokens) - chunk.sample
        places = range(end - chunk.logits + chunk.sample, end)
        return [self._values[chunk.table[place // self._size]][place % self._size] for place in places]

    def _reach(self, chunk: Chunk) -> int:
        """The sum of all values that the block table reaches, as attention reads all keys."""
        full, rest = divmod(chunk.start + len(chunk.tokens), self._size)
        total = sum(map(self._sums.__getitem__, chunk.table[:full]))
        return total + (sum(self._values[chunk.table[full]][:rest]) if rest else 0)


@dataclass(frozen=True, slots=True)
class StepProfile:
    """How long a step takes: `base_ms`, and more for every token that runs and for every sequence in the batch."""

    base_ms: float = 0.0
    token_ms: float = 0.0
    sequence_ms: float = 0.0

    def seconds(self, output: StepOutput) -> float:
        running = output.ran_tokens * self.token_ms + output.ran_sequences * self.sequence_ms
        return (self.base_ms + running) / 1000 if output.ran_tokens else 0.0


class SimulatedEngine:
    """Drives an engine core on the event loop, a step at a time, each as long as the profile says. What a step brings
    layer by layer comes at even distances within it, as if all layers took equally long."""

    def __init__(self, spec: ModelSpec, pages: int, limits: Limits, profile: StepProfile, clock: Clock) -> None:
        tokenizer = SimulatedTokenizer()
        shape = KvShape(spec.layers, spec.kv_heads, spec.head_dim, spec.dtype)
        compute = SimulatedCompute(pages, spec.page_tokens, shape)
        self.core = EngineCore(
            spec,
            pages,
            limits,
            compute,
            tokenizer.eos_ids,
            tokenizer.decoder,
            simulated_grammars(),
            layerwise=compute,
            now=clock.now,
        )
        self.core.take_early = self._take_early
        self._early: list[StepOutput] = []
        self.spec = self.core.spec
        self._profile = profile
        self._clock = clock
        self._load = self.core.load()
        self._inbox: deque[EngineCommand] = deque()
        self._wake = asyncio.Event()

    def match(self, chain: Sequence[PageId]) -> int:
        return self.core.match(chain)

    def tell(self, command: EngineCommand) -> None:
        self._inbox.append(command)
        self._wake.set()

    def load(self) -> Load:
        return self._load

    def check(self) -> None:
        self.core.check()

    def pages_of(self, session: SessionId) -> int:
        """How many pages a session has used, so that erasing it would drop them or leave them to others."""
        return self.core.pages_of(session)

    async def steps(self) -> AsyncIterator[StepOutput]:
        while True:
            while not self._inbox and not self.core.busy:
                self._wake.clear()
                await self._wake.wait()
            while self._inbox:
                self.core.apply(self._inbox.popleft())
            if self.core.busy:
                began = self._clock.now()
                output = self.core.step()
                self._load = output.load
                seconds = self._profile.seconds(output)
                self.core.took(seconds)
                early, self._early = self._early, []
                for number, part in enumerate(early, 1):
                    await self._until(began, seconds * number / len(early))
                    yield part
                await self._until(began, seconds)
                yield replace(output, took_ms=seconds * 1000)

    async def _until(self, began: float, seconds: float) -> None:
        """Wait until so long after `began`; what this process itself took counts as well, as beside a device."""
        await self._clock.sleep(max(seconds - (self._clock.now() - began), 0.0))

    def _take_early(self, output: StepOutput) -> bool:
        self._early.append(output)
        return True
