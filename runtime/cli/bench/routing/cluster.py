"""A cluster in virtual time: workers with a queue, a pace and a cache each, as a router sees them."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.cli.bench.routing.trace import BLOCK, Ask
from runtime.domain.messages import Worker
from runtime.domain.pages import Occupancy
from runtime.domain.profile import Profile
from runtime.domain.routing import DECODE, PREFILL
from runtime.domain.steps import Load
from runtime.ids import BootId, WorkerId

TOKEN_BYTES = 131_072
"""Of KV, as a model of 8 B parameters with grouped heads has it in 16 bits."""
LINK_GB = 12.0
_TOKEN_MS = 0.1
# What a token costs more for each one before it: attention.
_SQUARE_MS = 5e-7
_STEP_MS = 15.0
_ROW_MS = 0.2
_LINE = tuple(256 << power for power in range(10))
PROFILE = Profile(
    tuple((tokens, tokens * _TOKEN_MS + tokens * tokens * _SQUARE_MS) for tokens in _LINE),
    tuple((1 << power, _STEP_MS + (1 << power) * _ROW_MS) for power in range(9)),
    (("grpc", LINK_GB),),
)


def prefill_ms(held: int, tokens: int) -> float:
    """What a worker takes for a prompt of which it holds the beginning."""
    return (tokens - held) * _TOKEN_MS + (tokens * tokens - held * held) * _SQUARE_MS


@dataclass(frozen=True, slots=True)
class Served:
    """`hit` tokens were held by whoever prefilled."""

    ttft_ms: float
    hit: int
    tokens: int


class Node:
    """A worker. `room` blocks fit into its cache, of which the least recently used goes first."""

    def __init__(self, name: str, role: str, room: int) -> None:
        self.boot = BootId(name)
        self.free_at = 0.0
        self.busy_ms = 0.0
        self._name, self._role, self._room = name, role, room
        self._cache: OrderedDict[int, None] = OrderedDict()
        self._decoding: list[float] = []
        self._prefills: list[float] = []

    def held(self, ask: Ask) -> int:
        """Tokens of the prompt that are cached here; its last is computed always."""
        blocks = 0
        for block in ask.blocks:
            if block not in self._cache:
                break
            blocks += 1
        return min(blocks * BLOCK, ask.tokens - 1)

    def prefill(self, now: float, ms: float) -> float:
        """Seconds at which a prefill of so many milliseconds ends that comes now."""
        self.free_at = max(self.free_at, now) + ms / 1000
        self.busy_ms += ms
        self._prefills.append(self.free_at)
        return self.free_at

    def decoding(self, now: float) -> int:
        self._decoding = [until for until in self._decoding if until > now]
        return len(self._decoding)

    def decode(self, now: float, tokens: int) -> None:
        step_ms = _STEP_MS + (self.decoding(now) + 1) * _ROW_MS
        self._decoding.append(now + tokens * step_ms / 1000)

    def keep(self, ask: Ask) -> tuple[list[int], list[int]]:
        """Take a prompt's full blocks into the cache; gives those that are new, and those that went for them."""
        stored, removed = list[int](), list[int]()
        # The end of a chain is used no later than its beginning, and goes first.
        for block in reversed(ask.blocks[: ask.tokens // BLOCK][: self._room]):
            if block not in self._cache:
                stored.append(block)
            self._cache[block] = None
            self._cache.move_to_end(block)
        while len(self._cache) > self._room:
            gone, _ = self._cache.popitem(last=False)
            removed.append(gone)
        return stored, removed

    def shown(self, now: float) -> Worker:
        """As the view has it."""
        self._prefills = [until for until in self._prefills if until > now]
        todo = int(max(self.free_at - now, 0.0) * 1000 / _TOKEN_MS)
        pages = Occupancy(self._room - len(self._cache), 0, 0, len(self._cache))
        load = Load(self.decoding(now), len(self._prefills) if self._role == PREFILL else 0, 0, todo, pages)
        address = f"{self._name}:1"
        return Worker(
            WorkerId(self._name), self.boot, self._role, address, "m", "k", "s", 1 << 20, BLOCK, "", load,
            profile=PROFILE,
        )  # fmt: skip


class Cluster:
    def __init__(self, prefill: int, decode: int, room: int) -> None:
        self.prefill = [Node(f"prefill-{number}", PREFILL, room) for number in range(prefill)]
        self.decode = [Node(f"decode-{number}", DECODE, room) for number in range(decode)]
        self.nodes = {node.boot: node for node in (*self.prefill, *self.decode)}

    def serve(
        self, ask: Ask, now: float, decode: Node, candidates: Sequence[BootId], least: int
    ) -> tuple[Node, Served]:
        """What comes of a placement: who prefilled, and how it went. An uncached suffix of `least` tokens or more is
        prefilled by the first candidate."""
        here = decode.held(ask)
        if candidates and ask.tokens - here >= least:
            worker = self.nodes[candidates[0]]
            held = worker.held(ask)
            ms = prefill_ms(held, ask.tokens)
            whole = (ask.tokens - here) * TOKEN_BYTES / LINK_GB / 1e6
            moved = max(whole - ms, whole / max((ask.tokens - held) / BLOCK, 1.0))
        else:
            worker, held, moved = decode, here, 0.0
            # Those who decode beside a prefill get half of the steps.
            ms = prefill_ms(held, ask.tokens) * (2 if decode.decoding(now) else 1)
        done = worker.prefill(now, ms) + moved / 1000
        decode.decode(done, ask.answer)
        step = _STEP_MS + decode.decoding(now) * _ROW_MS
        return worker, Served((done - now) * 1000 + step, held, ask.tokens)


def names_of_blocks(blocks: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """The names that an index knows a trace's blocks by: as far apart as hashes are."""
    values = np.array(blocks, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))
