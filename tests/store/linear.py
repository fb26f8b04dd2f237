"""Whether a recorded concurrent history is one that a sequential model could have had: linearizability.

Each call takes effect at one moment between its beginning and its answer. The search takes the calls in every order
that time allows, as long as the model answers as it was answered, and never goes twice where it has been: the calls
that were taken, and the state that they led to. A call whose answer was lost takes effect at any time after it began,
or never.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)
What = TypeVar("What")
_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class Call(Generic[What]):
    """`began` and `ended` count the beginnings and answers of all calls; `ended` is None where the answer was lost."""

    what: What
    began: int
    ended: int | None
    answer: object = None


def stuck(
    calls: Sequence[Call[What]], start: State, step: Callable[[State, What], tuple[State, object]]
) -> tuple[Call[What], ...]:
    """Empty where the history is linearizable; else the calls that could come next where most were taken, and of which
    the model answers none as it was answered."""
    ordered = sorted(calls, key=lambda call: call.began)
    needed = sum(1 << place for place, call in enumerate(ordered) if call.ended is not None)
    todo, seen = [(0, start)], {(0, start)}
    furthest = 0
    while todo:
        taken, state = todo.pop()
        if taken & needed == needed:
            return ()
        furthest = max(furthest, taken, key=int.bit_count)
        # The last is looked at first: the call that was answered first of those that may be next.
        for place in sorted(_next(ordered, taken), key=lambda place: -(ordered[place].ended or 1 << 62)):
            call = ordered[place]
            after, answer = step(state, call.what)
            node = taken | 1 << place, after
            if (call.ended is None or answer == call.answer) and node not in seen:
                assert len(seen) < _MOST, "the history is too long to be searched"
                seen.add(node)
                todo.append(node)
    return tuple(ordered[place] for place in _next(ordered, furthest))


def _next(ordered: Sequence[Call[What]], taken: int) -> Iterator[int]:
    """The calls that began before any of those that are left was answered."""
    first = (~taken & (taken + 1)).bit_length() - 1
    bound = 1 << 62
    for place in range(first, len(ordered)):
        call = ordered[place]
        if taken >> place & 1:
            continue
        if call.began > bound:
            return
        bound = min(bound, call.ended or bound)
        yield place
