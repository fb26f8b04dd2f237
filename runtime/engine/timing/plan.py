"""What an engine is timed at, and what came out: the words between a bench and the processes that compute."""

import random
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """`model` is a checkpoint folder. Each of `prompts` (lengths in tokens) is timed to its first token; a single
    stream and `batch` streams decode `steps` tokens after `context` tokens. Everything `rounds` times."""

    model: str
    dtype: str
    threads: int
    vocab: int
    prompts: tuple[int, ...]
    context: int
    batch: int
    steps: int
    rounds: int

    def prompt(self, tokens: int, number: int) -> list[int]:
        """Random token ids; another `number` shares no prefix."""
        source = random.Random(f"{tokens}:{number}")
        return [source.randrange(self.vocab) for _ in range(tokens)]


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """A list entry per round. `first_ms` of each length in milliseconds, by its decimal text as JSON has it; `itl_ms`
    of a single stream; `tokens_per_s` of the whole batch while all of it decodes. `alone_p99_ms` and `mixed_p99_ms` are
    what one in a hundred tokens of a few streams waits for longer, without and with prompts prefilled beside them; of
    the native engine only."""

    first_ms: dict[str, list[float]]
    itl_ms: list[float]
    tokens_per_s: list[float]
    alone_p99_ms: list[float] = field(default_factory=list)
    mixed_p99_ms: list[float] = field(default_factory=list)
