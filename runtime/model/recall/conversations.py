"""Synthetic conversations: facts stated, facts asked for, small talk between; deterministic for a seed.

Owns what is said in which order; tokens and lengths belong to the callers.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from runtime.model.recall.facts import KINDS, Exchange, Fact, Kind, draw_fact, unknown_question
from runtime.model.recall.small_talk import small_talk
from runtime.model.recall.values import Split

SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "You are Baton's demo model.",
    "Remember what the user tells you.",
    "Answer briefly.",
    "You are a friendly assistant. Answer in short sentences.",
)
_OPENINGS = ("By the way, ", "Also, ", "Hello, ", "And ", "Well, ")
_CORRECTIONS = ("Actually, ", "Sorry, ", "No, ", "By the way, ", "")
_BOTH_NOTED = "Noted, I will remember both."
_ALL_NOTED = "Noted, I will remember all of that."


@dataclass(frozen=True)
class Mix:
    """How often each kind of exchange comes; the rest of the probability is small talk.

    The conversation opens with `opening_facts` facts in a row; a message states one to `at_once` of them.
    """

    state: float
    ask: float
    ask_unknown: float
    override: float = 0.1
    together: float = 0.1
    at_once: int = 2
    opening_facts: int = 0
    casual: float = 0.1


@dataclass
class Conversation:
    """An endless conversation in which one exchange follows another."""

    rng: random.Random
    split: Split
    mix: Mix
    never_asked: frozenset[str] = frozenset()
    facts: dict[str, Fact] = field(default_factory=dict)
    unasked: set[str] = field(default_factory=set)

    def exchanges(self) -> Iterator[Exchange]:
        while True:
            yield self.next_exchange()

    def next_exchange(self) -> Exchange:
        draw = self.rng.random()
        if draw < self.mix.state or len(self.facts) < self.mix.opening_facts:
            return self._casual(self._state())
        if draw < self.mix.state + self.mix.ask and (askable := self._askable()):
            return self._casual(self.ask(askable))
        if draw < self.mix.state + self.mix.ask + self.mix.ask_unknown and (kinds := self._unknown()):
            return self._casual(unknown_question(self.rng.choice(kinds), self.rng))
        return self._casual(small_talk(self.rng))

    def state(self, kind: Kind) -> Exchange:
        """States (or restates) a fact of `kind`; from now on its value is the one to recall."""
        known = kind.key in self.facts
        fact = draw_fact(kind, self.split, self.rng)
        self.facts[kind.key] = fact
        self.unasked.add(kind.key)
        return self._opened(fact.statement(self.rng), _CORRECTIONS if known else _OPENINGS, 0.6 if known else 0.15)

    def ask(self, keys: list[str]) -> Exchange:
        """Asks for one of `keys`, all of them stated before."""
        key = self.rng.choice(keys)
        self.unasked.discard(key)
        return self.facts[key].question(self.rng)

    def _state(self) -> Exchange:
        together = self.rng.random() < self.mix.together
        stated = [
            self.state(self._kind_to_state()) for _ in range(self.rng.randint(2, self.mix.at_once) if together else 1)
        ]
        if not together:
            return stated[0]
        return Exchange(" ".join(one.user for one in stated), _BOTH_NOTED if len(stated) == 2 else _ALL_NOTED)

    def _kind_to_state(self) -> Kind:
        known = [kind for kind in KINDS if kind.key in self.facts]
        fresh = [kind for kind in KINDS if kind.key not in self.facts]
        if known and (not fresh or self.rng.random() < self.mix.override):
            return self.rng.choice(known)
        return self.rng.choice(fresh)

    def _askable(self) -> list[str]:
        """Mostly what was not asked since it was stated: an answer already given is too easy to copy."""
        unasked = sorted(self.unasked - self.never_asked)
        if unasked and self.rng.random() < 0.9:
            return unasked
        return sorted(self.facts.keys() - self.never_asked)

    def _unknown(self) -> list[Kind]:
        return [kind for kind in KINDS if kind.key not in self.facts and kind.key not in self.never_asked]

    def _opened(self, exchange: Exchange, openings: tuple[str, ...], share: float) -> Exchange:
        if self.rng.random() >= share:
            return exchange
        opening = self.rng.choice(openings)
        keeps_capital = not opening or exchange.user.startswith("I ")
        text = exchange.user if keeps_capital else exchange.user[0].lower() + exchange.user[1:]
        return Exchange(opening + text, exchange.assistant)

    def _casual(self, exchange: Exchange) -> Exchange:
        """Sometimes typed carelessly: without the final mark, or all but the names in lower case at the start."""
        user = exchange.user
        if self.rng.random() < self.mix.casual:
            user = user.rstrip(".?!")
        if self.rng.random() < self.mix.casual:
            user = user[0].lower() + user[1:]
        return Exchange(user, exchange.assistant)


def mixed_conversation(rng: random.Random) -> Conversation:
    """A conversation over trained values with a mix of its own: some state much, some ask much, some chat."""
    state = rng.uniform(0.25, 0.55)
    ask = rng.uniform(0.5, 0.85) * (0.95 - state)
    return Conversation(rng, "trained", Mix(state=state, ask=ask, ask_unknown=0.05))


def drill_conversation(rng: random.Random, tokens: int) -> Conversation:
    """First about as many facts as `tokens` allow, then hardly anything but questions: the most recall a token."""
    facts = rng.randint(2, max(4, tokens // 32))
    mix = Mix(
        state=0.08, ask=0.84, ask_unknown=0.03, override=0.15, together=0.5, at_once=4, casual=0.05, opening_facts=facts
    )
    return Conversation(rng, "trained", mix)


def system_text(rng: random.Random) -> str | None:
    return rng.choice(SYSTEM_TEXTS) if rng.random() < 0.2 else None
