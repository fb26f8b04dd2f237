"""Judges trials: what clients received, what was given out by which attempt, and what is held where, by invariant."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runtime.domain.breaking import RetryPolicy
from runtime.domain.generation import Delta
from runtime.domain.messages import Output, View
from runtime.domain.scoring import PromptScores
from runtime.domain.sequence import FinishReason, Ref, Sampling
from runtime.domain.sessions import Item
from runtime.domain.staging import SlotState
from runtime.domain.tools import Toolbox
from runtime.domain.turn import AttemptLost, Give, Opened, Overdue, Place, SendStart
from runtime.engine.simulated import SimulatedDecoder, SimulatedEngine, SimulatedTokenizer, continuation, prompt_scores
from runtime.errors import BatonError, InvariantViolation
from runtime.ids import BootId, GatewayId, SequenceId, SessionId, TurnId, WorkerId
from runtime.mesh.checking.ledger import Ledger
from runtime.mesh.simulated.network import Host
from runtime.mesh.simulated.onesided import OneSidedTransport
from runtime.mesh.simulated.scenario import Ask
from runtime.mesh.simulated.world import Process, World
from runtime.ports import Observe

MAY_SEE = frozenset({"unavailable", "deadline", "poison", "exhausted"})
INTRUDER = WorkerId("intruder")
"""A worker that serves another model, and tries to get in again and again."""
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


class SimulatedOracle:
    """What the simulated model says when nothing goes wrong."""

    def __init__(self) -> None:
        self._tokenizer = SimulatedTokenizer()

    def prompt(self, past: Sequence[Item], items: Sequence[Item], toolbox: Toolbox, *, rerender: bool) -> list[int]:
        if rerender or not past:
            tools = [tool.for_template for tool in toolbox.tools]
            return self._tokenizer.render_chat([item.message for item in (*past, *items)], tools)
        return self._tokenizer.render_delta((), [item.message for item in items])

    def answer(self, context: Sequence[int], sampling: Sampling) -> list[int]:
        return continuation(context, sampling)


class Checker:
    def __init__(self, world: World) -> None:
        self.ledger = Ledger(world.violated)
        self.erased: set[SessionId] = set()
        self._believed: dict[GatewayId, tuple[View, View]] = {}
        self._granted: dict[tuple[BootId, SequenceId], float] = {}
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

    def gateway(self, process: Process, policy: RetryPolicy) -> Observe:
        """Observes a gateway, and counts what it tries again out of its budget."""
        counted, observe = Retries(process, policy), self.observer(process.name)

        def both(ref: Ref, event: object, commands: Sequence[object]) -> None:
            counted.observe(ref, event, commands)
            observe(ref, event, commands)

        return both

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
        if client.error is not None and client.error.status.code not in MAY_SEE:
            self._world.report(AssertionError(f"a client saw {client.error.status.code}: {client.error}"))

    def audit(self, engine: SimulatedEngine, transport: OneSidedTransport) -> None:
        """Pages and staging slots add up, at any time."""
        for check in (transport.staging.check, engine.check):
            try:
                check()
            except InvariantViolation as error:
                self._world.report(error)

    def kept(self, host: Host, boot: BootId, engine: SimulatedEngine, longest_s: float) -> None:
        """No grant outlives what its worker was told when the session paused, nor, until it is told, the longest that
        there is, however it came to its end (invariant 11)."""
        now, process = self._world.loop.time(), host.process
        for sequence in engine.core.grants.all():
            granted = self._granted.setdefault((boot, sequence), now)
            began, keep_s = host.rests.get(sequence, (granted, longest_s))
            since = max(began, process.thaws)
            if process.alive and now - since > keep_s + 2 * _SLACK_S:
                told = f"keeps {sequence} for {now - since:.1f} s already, {keep_s} s was the longest"
                self._world.violated(11, f"{process.name} {told}")

    def believed(self, gateway: GatewayId, view: View, members: Mapping[WorkerId, BootId]) -> None:
        """While a new controller settles, nobody is missing of those that this gateway knew and that are `members`
        still (invariant 18)."""
        last, before = self._believed.get(gateway, (view, view))
        if view.incarnation > last.incarnation:
            before = last
        self._believed[gateway] = view, before
        if before.incarnation and any(worker.id == INTRUDER for worker in view.workers):
            self._world.violated(18, f"{gateway} believes in a worker that serves another model")
        if view.settling and before.incarnation < view.incarnation:
            here = {worker.id for worker in view.workers}
            for worker in before.workers:
                if worker.id not in here and members.get(worker.id) == worker.boot:
                    told = f"{worker.id} is gone for {gateway}, only because a new controller does not know it yet"
                    self._world.violated(18, told)

    def held(self, host: Host, engine: SimulatedEngine, transport: OneSidedTransport) -> str:
        """What a worker that should be idle still has, in words; empty when nothing."""
        load, slots = engine.load(), transport.staging.counts()
        counts = {
            "requests": host.role.running(),
            "calls for copies": host.holding.running(),
            "pages to be copied": host.mirror.report().waiting,
            "running sequences": load.running,
            "waiting sequences": load.waiting,
            "awaiting sequences": load.awaiting,
            "landing pages": load.pages.landing,
            "owned pages": load.pages.owned,
            "granted slots": slots[SlotState.GRANTED],
            "quarantined slots": slots[SlotState.QUARANTINED],
        }
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


class Retries:
    """One gateway's account of what it tries again that had failed before its first token (invariant 19)."""

    def __init__(self, process: Process, policy: RetryPolicy) -> None:
        self._process = process
        self._policy = policy
        self._began = process.now()
        self._opened = self._taken = 0
        self._failed: set[TurnId] = set()
        self._gave: set[TurnId] = set()

    def observe(self, ref: Ref, event: object, commands: Sequence[object]) -> None:
        if isinstance(event, Opened):
            self._opened += 1
            self._gave.discard(ref.turn)
        for command in commands:
            match command:
                case Give():
                    self._gave.add(ref.turn)
                case Place() if isinstance(event, Overdue) or _refused(event):
                    self._failed.add(ref.turn)
                case SendStart(forced=forced) if ref.turn in self._failed:
                    self._failed.discard(ref.turn)
                    self._taken += ref.turn not in self._gave and not forced
        policy, seconds = self._policy, self._process.now() - self._began
        if self._taken > policy.burst + policy.per_turn * self._opened + policy.per_s * seconds:
            told = f"{self._process.name} has tried {self._taken} times again what had given nothing"
            self._process.world.violated(19, told)


def _refused(event: object) -> bool:
    return isinstance(event, AttemptLost) and event.failed.error.status.retryable


def _short(thing: object) -> str:
    if isinstance(thing, Output):
        return f"Output({thing.index}+{len(thing.tokens)})"
    return type(thing).__name__
