"""Asks a native engine, whole or split into one that prefills and one that decodes, and hears its tokens."""

import random
from collections.abc import Iterable

from runtime.domain.sequence import Sampling, Sequence
from runtime.domain.steps import (
    DecodeAwaiting,
    DecodeLocal,
    Exported,
    Frame,
    Generated,
    Land,
    Prefill,
    Reserved,
    Run,
    StepEvent,
    Submit,
)
from runtime.engine.core import EngineCore
from runtime.ids import SequenceId
from runtime.model.synthetic import TINY

SALT = bytes(16)
GREEDY = Sampling(max_tokens=64, temperature=0.0, ignore_eos=True)


def prompt(size: int) -> tuple[int, ...]:
    source = random.Random(size)
    return tuple(source.randrange(TINY.vocab) for _ in range(size))


def run(core: EngineCore) -> list[StepEvent]:
    """Step until idle; the pool must add up then, with nothing held."""
    events: list[StepEvent] = []
    while core.busy:
        events += core.step().events
    core.check()
    return events


def sequence(name: str, tokens: tuple[int, ...], sampling: Sampling) -> Sequence:
    return Sequence(SequenceId(name), tokens, sampling, SALT)


def answers(core: EngineCore, sequences: Iterable[Sequence]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for each in sequences:
        found[each.id] = []
        core.apply(Submit(each, DecodeLocal()))
    collect(run(core), found)
    assert core.load().pages.owned == 0
    return found


def collect(events: Iterable[StepEvent], found: dict[str, list[int]]) -> None:
    for event in events:
        if isinstance(event, Generated):
            found[event.sequence].extend(sampled.token for sampled in event.tokens)


def split(prefill: EngineCore, decode: EngineCore, asked: Sequence, lose: set[int] | None = None) -> list[int]:
    """Prefill in one engine, move the frames (but those of `lose`), and decode in the other."""
    decode.apply(Submit(asked, DecodeAwaiting()))
    (reserved,) = (event for event in decode.step().events if isinstance(event, Reserved))
    first_page = reserved.local_tokens // decode.spec.page_tokens
    prefill.apply(Submit(asked, Prefill(len(asked.prompt) - 1, first_page)))
    frames: list[Frame] = [event.frame for event in run(prefill) if isinstance(event, Exported)]
    for frame in frames:
        if frame.index not in (lose or set()):
            decode.apply(Land(asked.id, frame))
    decode.apply(Run(asked.id))
    found: dict[str, list[int]] = {asked.id: []}
    collect(run(decode), found)
    return found[asked.id]
