"""Requests to be replayed: from a file in the form of Mooncake's published traces, or made up in the same form."""

import json
import random
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from runtime.errors import InvalidArgument

BLOCK = 512
"""Tokens that each id of a trace stands for, with all before them."""
_SYSTEMS = 8
_SYSTEM_BLOCKS = 3


@dataclass(frozen=True, slots=True)
class Ask:
    """`at` is in seconds from the first; `blocks` names the prompt's blocks, the last of which may not be full."""

    at: float
    tokens: int
    answer: int
    blocks: tuple[int, ...]


def read_trace(path: Path, most: int | None) -> list[Ask]:
    """Up to `most` requests of a file with an object a line: `timestamp` in milliseconds, `input_length`,
    `output_length`, `hash_ids`. Raises `InvalidArgument` naming the line."""
    asks: list[Ask] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if len(asks) == most:
                    break
                told = json.loads(line)
                at, tokens, answer = told["timestamp"] / 1000, int(told["input_length"]), int(told["output_length"])
                asks.append(Ask(at, tokens, answer, tuple(map(int, told["hash_ids"]))))
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}", field="trace") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(f"{path}: line {len(asks) + 1} is no request: {error}", field="trace") from error
    if not asks:
        raise InvalidArgument(f"{path} has no request", field="trace")
    return sorted(asks, key=lambda ask: ask.at)


def made_trace(requests: int, seed: int = 1) -> list[Ask]:
    """Conversations that begin at random: one of a few system prompts, then turns that each go on from all before, some
    seconds to minutes later."""
    rng, fresh = random.Random(seed), count(1)
    systems = [[next(fresh) for _ in range(_SYSTEM_BLOCKS)] for _ in range(_SYSTEMS)]
    asks: list[Ask] = []
    start = 0.0
    while len(asks) < requests:
        start += rng.expovariate(1.0)
        at, blocks = start, [*rng.choice(systems)]
        for _ in range(min(int(rng.expovariate(1 / 4)) + 1, 20)):
            blocks += [next(fresh) for _ in range(min(int(rng.paretovariate(0.9)), 60))]
            tokens = len(blocks) * BLOCK - rng.randrange(BLOCK)
            answer = min(int(rng.lognormvariate(5, 1)) + 1, 2000)
            asks.append(Ask(at, tokens, answer, tuple(blocks)))
            at += 5 + rng.expovariate(1 / 40)
    asks.sort(key=lambda ask: ask.at)
    return asks[:requests]
