"""Judges trials: what clients received, what was given out by which attempt, and what is held where, by invariant."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.domain.generation import Delta
from runtime.domain.messages import Output
from runtime.domain.scoring import PromptScores
from runtime.domain.sequence import FinishReason, Ref
from runtime.domain.staging import SlotState
from runtime.domain.turn import Give
from runtime.engine.simulated import SimulatedDecoder, SimulatedEngine, continuation, prompt_scores
from runtime.errors import BatonError, InvariantViolation
from runtime.mesh.simulated.onesided import OneSidedTransport
from runtime.mesh.simulated.scenario import Ask
from runtime.mesh.simulated.world import World
from runtime.ports import Observe
from runtime.roles.decode import DecodeRole
from runtime.roles.prefill import PrefillRole

_MAY_SEE = frozenset({"unavailable", "deadline", "poison", "exhausted"})
_SLACK_S = 0.1


@dataclass(slots=True)
class Client:
    """What one client saw. `patience`: how long its gateway may have been frozen meanwhile."""

    ask: Ask
    began: float
    patience: float
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    scores: PromptScores | None = None
    finish: FinishReason | None = None
    error: BatonError | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    orphaned: bool = False
    took_s: float = 0.0

    @property
    def must_end(self) -> float:
        return self.began + self.ask.deadline_s + self.patience + 2 * _SLACK_S

    def take(self, delta: Delta, world: World) -> None:
        if delta.index != len(self.tokens):
            world.violated(7, f"output at index {delta.index} after {len(self.tokens)} tokens")
        if delta.scores is not None:
            if self.scores is not None:
                world.violated(7, "the prompt's log-probabilities were given twice")
            self.scores = delta.scores
        self.tokens.extend(sampled.token for sampled in delta.tokens)
        self.text += delta.text
        self.finish = delta.finish

    def end(self, world: World, error: BatonError | None) -> None:
        self.over.set()
        self.error = error
        self.took_s = world.loop.time() - self.began

    def orphan(self) -> None:
        """Its gateway died: a stateless request ends there, without a finish."""
        self.orphaned = True
        self.over.set()


class Checker:
    def __init__(self, world: World) -> None:
        self._world = world

    def observer(self, who: str) -> Observe:
        def observe(ref: Ref, event: object, commands: Sequence[object]) -> None:
            for command in commands:
                if isinstance(command, Give) and command.delta.attempt != ref.attempt:
                    given = command.delta.attempt
                    self._world.violated(7, f"output of attempt {given} was given out during {ref.attempt}")
            if self._world.trace is not None:
                self._world.say(who, f"{ref.sequence}: {_short(event)} -> {', '.join(map(_short, commands)) or '-'}")

        return observe

    def judge(self, client: Client) -> None:
        """A client got a prefix of what the unharmed run gives, ended in time, and by a legal end."""
        expected = continuation(client.ask.prompt, client.ask.sampling)
        if client.tokens != expected[: len(client.tokens)]:
            at = next(i for i, pair in enumerate(zip(client.tokens, expected, strict=False)) if pair[0] != pair[1])
            repeated = client.tokens[at] in expected[max(at - 1, 0) : at]
            self._world.violated(7 if repeated else 8, f"token {at} of {len(expected)} differs from the unharmed run")
        if client.finish is not None and len(client.tokens) != len(expected):
            self._world.violated(7, f"finished after {len(client.tokens)} of {len(expected)} tokens")
        top = client.ask.sampling.prompt_logprobs
        scores = None if top is None or not client.tokens else prompt_scores(client.ask.prompt, top)
        if client.scores != scores:
            self._world.violated(8, "the prompt's log-probabilities differ from the unharmed run")
        decoder = SimulatedDecoder()
        if client.text != "".join(decoder.push(token) for token in client.tokens):
            self._world.violated(7, "the text is not that of the tokens")
        if client.orphaned:
            return
        if not client.over.is_set() or client.took_s > client.ask.deadline_s + client.patience + _SLACK_S:
            self._world.violated(17, f"a request with a deadline of {client.ask.deadline_s:.2f} s did not end in time")
        if client.error is not None and client.error.status.code not in _MAY_SEE:
            self._world.report(AssertionError(f"a client saw {client.error.status.code}: {client.error}"))

    def audit(self, engine: SimulatedEngine, transport: OneSidedTransport) -> None:
        """Pages and staging slots add up, at any time."""
        for check in (transport.staging.check, engine.check):
            try:
                check()
            except InvariantViolation as error:
                self._world.report(error)

    def held(self, role: DecodeRole | PrefillRole, engine: SimulatedEngine, transport: OneSidedTransport) -> str:
        """What a worker that should be idle still has, in words; empty when nothing."""
        load, slots = engine.load(), transport.staging.counts()
        counts = {
            "requests": role.running(),
            "running sequences": load.running,
            "waiting sequences": load.waiting,
            "awaiting sequences": load.awaiting,
            "landing pages": load.pages.landing,
            "owned pages": load.pages.owned,
            "granted slots": slots[SlotState.GRANTED],
            "quarantined slots": slots[SlotState.QUARANTINED],
        }
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _short(thing: object) -> str:
    if isinstance(thing, Output):
        return f"Output({thing.index}+{len(thing.tokens)})"
    return type(thing).__name__
