"""Who of those that wait comes next, by priority and by what tenants were served. Never whether there is room for it.

    of the best priority that waits, which is the lowest number;
    of it the tenant that was served the fewest tokens, of equals who came first;
    of the tenant who came first.

Nobody starves. `SHARE` picks at most in a row pass the priority of whoever has waited longest, so that its priority has
one pick in `SHARE` at the least, however many better ones keep coming. Within a priority each pick goes to the least
served, and being served makes it less so than those that wait.

No tenant gains on another without a bound. When one is picked, nobody of its priority that waits was served less; so
it is never further ahead of one that still waits than by what its own sequences in the batch were served since, which
is at most a batch of the longest sequences. Idling earns nothing: who comes back starts where the one stood that was
picked last. Tokens that are computed again, after a preemption, are nobody's gain and not counted.
"""

from collections import Counter, deque
from collections.abc import Iterator

from runtime.domain.batched import Entry, Phase

SHARE = 8
_Of = tuple[int, bytes]


class Served:
    """Tokens that each tenant was served, within each priority, while anybody of that priority is there."""

    def __init__(self) -> None:
        self._tokens: dict[_Of, int] = {}
        self._there: Counter[_Of] = Counter()
        self._level: dict[int, int] = {}

    def joins(self, entry: Entry) -> None:
        mine = _of(entry)
        if not self._there[mine]:
            self._tokens[mine] = max(self._tokens.get(mine, 0), self._level.get(mine[0], 0))
        self._there[mine] += 1

    def picked(self, entry: Entry) -> None:
        """Whoever comes now, or comes back, was served as much as the one whose turn it is."""
        priority = entry.sequence.priority
        self._level[priority] = max(self._level.get(priority, 0), self.tokens(entry))

    def leaves(self, entry: Entry) -> None:
        mine = _of(entry)
        self._there[mine] -= 1
        self._there = +self._there
        if not any(of[0] == mine[0] for of in self._there):
            self._tokens = {of: tokens for of, tokens in self._tokens.items() if of[0] != mine[0]}
            self._level.pop(mine[0], None)

    def ran(self, entry: Entry, upto: int) -> None:
        """Its first `upto` tokens have been run; each counts once."""
        self._tokens[_of(entry)] += max(upto - entry.charged, 0)
        entry.charged = max(entry.charged, upto)

    def tokens(self, entry: Entry) -> int:
        """What was served to its tenant, in its priority."""
        return self._tokens[_of(entry)]


class Line:
    """Those that wait for a place in the batch; those that were preempted come before all others."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._preempted: deque[Entry] = deque()
        self._queues: dict[tuple[Phase, int, bytes], deque[Entry]] = {}
        self._passed = 0

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Entry]:
        yield from self._preempted
        for queue in self._queues.values():
            yield from queue

    @property
    def preempted(self) -> bool:
        return bool(self._preempted)

    def has(self, phase: Phase) -> bool:
        return (phase is Phase.WAITING and self.preempted) or any(key[0] is phase for key in self._queues)

    def add(self, entry: Entry) -> None:
        self._queues.setdefault((entry.phase, *_of(entry)), deque()).append(entry)

    def add_preempted(self, entry: Entry) -> None:
        self._preempted.appendleft(entry)

    def next(self, *, landed: bool = False) -> Entry | None:
        """Whose turn it is, of all or of those whose pages have landed; the same until somebody comes or goes."""
        if self._preempted and not landed:
            return self._preempted[0]
        heads = [queue[0] for key, queue in self._queues.items() if not landed or key[0] is Phase.LANDED]
        if not heads:
            return None
        oldest = min(heads, key=lambda entry: entry.number)
        best = min(entry.sequence.priority for entry in heads)
        if self._passed >= SHARE - 1:
            best = oldest.sequence.priority
        mine = [entry for entry in heads if entry.sequence.priority == best]
        return min(mine, key=lambda entry: (self._served.tokens(entry), entry.number))

    def take(self, entry: Entry) -> None:
        """It has its place."""
        if entry not in self._preempted:
            heads = [queue[0] for queue in self._queues.values()]
            oldest = min(heads, key=lambda each: each.number)
            self._served.picked(entry)
            passed = oldest.sequence.priority != entry.sequence.priority
            self._passed = self._passed + 1 if passed else 0
        self.remove(entry)

    def remove(self, entry: Entry) -> None:
        if entry in self._preempted:
            self._preempted.remove(entry)
            return
        key = (entry.phase, *_of(entry))
        queue = self._queues.get(key, deque())
        if entry in queue:
            queue.remove(entry)
            if not queue:
                del self._queues[key]


def _of(entry: Entry) -> _Of:
    """A tenant is told by the secret that keys its pages."""
    return entry.sequence.priority, entry.sequence.salt
