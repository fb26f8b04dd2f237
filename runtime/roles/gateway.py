"""A gateway: opens turns, places them on decode workers, and gives their tokens to the clients.

Owns the turns in flight and one stream per decode worker; never computes, and keeps nothing when it stops.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from runtime.clock import Clock
from runtime.domain import turn as t
from runtime.domain.breaking import BreakerPolicy, Breakers, RetryBudget, RetryPolicy
from runtime.domain.generation import Delta, Generation
from runtime.domain.membership import Belief
from runtime.domain.messages import (
    Acknowledge,
    Attach,
    CancelAttempt,
    Output,
    Paused,
    Start,
    StepBatch,
    View,
    Worker,
)
from runtime.domain.retention import NO_RETENTION, KeptFor
from runtime.domain.routing import DECODE, Asked, Explained, Explaining
from runtime.domain.spec import ModelSpec
from runtime.errors import (
    ContextExceeded,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from runtime.ids import BootId, GatewayId, Ids, TenantId, TurnId
from runtime.ports import Directory, Observe, Peers, Tokenizer, unobserved
from runtime.roles.deltas import Deltas
from runtime.roles.live import Live
from runtime.roles.stream import Ended, Stream, StreamSettings

_NOBODY = Unavailable("no decode worker serves now", retry_after_ms=1000)
_SPENT = Unavailable("decode workers fail too often to try again now", retry_after_ms=1000)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """`placement_s`: how long a turn waits for a decode worker to appear; after `second_chance_s` of it one that the
    turn suspects will do, if the view still has it. `overdue_s`: an attempt that brings nothing
    for so long is tried elsewhere. `deltas` bounds what a slow client may leave unread before its request is
    cancelled. `breakers` say whom to avoid for a while, `retries` how often what has not begun is tried again."""

    stream: StreamSettings
    placement_s: float = 10.0
    second_chance_s: float = 0.5
    overdue_s: float = 60.0
    deltas: int = 4096
    breakers: BreakerPolicy = field(default_factory=BreakerPolicy)
    retries: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """`created` is unix seconds, as model listings show it."""

    spec: ModelSpec
    tokenizer: Tokenizer
    created: int


class GatewayRole:
    def __init__(
        self,
        gateway: GatewayId,
        models: tuple[ServedModel, ...],
        router: Explaining,
        directory: Directory,
        peers: Peers,
        ids: Ids,
        clock: Clock,
        settings: GatewaySettings,
        observe: Observe = unobserved,
    ) -> None:
        self.gateway = gateway
        self.on_kept: Callable[[tuple[KeptFor, ...]], None] | None = None
        self._models = {model.spec.name: model for model in models}
        self._served = self._models
        self._router = router
        self._directory = directory
        self._peers = peers
        self._ids = ids
        self._clock = clock
        self._settings = settings
        self._observe = observe
        self._breakers = Breakers(settings.breakers)
        self._retries = RetryBudget(settings.retries, clock.now())
        self._belief = Belief()
        self._view = self._belief.view
        self._live: dict[TurnId, Live] = {}
        self._streams: dict[BootId, Stream] = {}
        self._group: asyncio.TaskGroup
        self._ready = asyncio.Event()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._watch())
            async for view in self._directory.views():
                self._on_view(view)

    async def wait_ready(self) -> None:
        """Wait until a decode worker is known."""
        await self._ready.wait()

    def models(self) -> tuple[ServedModel, ...]:
        return tuple(self._served.values())

    def served(self, name: str) -> ServedModel:
        """Its context is what every decode worker has room for. Raises `NotFound` naming the models that are served."""
        model = self._served.get(name)
        if model is None:
            known = ", ".join(sorted(self._models))
            raise NotFound(f"model {name!r} is not served here; served are: {known}", field="model")
        return model

    def view(self) -> View:
        return self._view

    def explain(self, tenant: TenantId, prompt: Sequence[int], more: int) -> Explained:
        """How a prompt after which `more` tokens may follow would be placed now; places nothing."""
        return self._router.explain(self._asked(tenant, prompt, more, frozenset(), None), self._clock.now())

    def in_flight(self) -> int:
        """Turns that have not ended, for draining."""
        return len(self._live)

    def fresh_seed(self) -> int:
        return self._ids.seed()

    @asynccontextmanager
    async def open(self, generation: Generation) -> AsyncIterator[Deltas]:
        """Run a turn; the context yields its deltas. Leaving it early cancels the turn everywhere.

        Raises the `InvalidArgument` of the first field at fault; iterating raises how the turn failed.
        """
        self.check(generation)
        claim = generation.claim
        turn = t.Turn(self._ids.turn()) if claim is None else t.Turn(claim.turn, claim.epoch, claim.given)
        live = Live(turn, generation, self._clock.now() + generation.deadline_s, self._settings.deltas)
        self._live[turn.ref.turn] = live
        self._retries.earn()
        self._after(live, generation.deadline_s, t.DeadlinePassed())
        self._feed(live, t.Opened())
        try:
            yield Deltas(live.queue)
        finally:
            self._feed(live, t.ClientGone())
            # A turn of a session that was left and taken up again is there anew.
            if self._live.get(turn.ref.turn) is live:
                del self._live[turn.ref.turn]

    def check(self, generation: Generation) -> None:
        """Raise the `InvalidArgument` of the first field at fault."""
        spec = self.served(generation.model).spec
        generation.sampling.validate()
        prompt, limit = len(generation.prompt), spec.max_tokens
        if not prompt:
            raise InvalidArgument("prompt is empty", field="prompt")
        if prompt + generation.sampling.max_tokens > limit:
            raise ContextExceeded(
                f"the prompt has {prompt} tokens and max_tokens is {generation.sampling.max_tokens}, "
                f"together more than the model's context of {limit} tokens",
                field="max_tokens" if prompt < limit else "prompt",
            )
        if not all(0 <= token < spec.vocab for token in generation.prompt):
            raise InvalidArgument(f"prompt holds a token id outside the vocabulary of {spec.vocab}", field="prompt")
        generation.sampling.check_vocabulary(spec.vocab)
        generation.sampling.check_prompt(prompt)
        if generation.deadline_s <= 0:
            raise DeadlineExceeded("the deadline had passed when the request arrived", field="deadline_ms")

    def _on_view(self, told: View) -> None:
        self._view = view = self._belief.take(told)
        self._router.see(view, self._clock.now())
        self._served = {name: _bounded(model, view) for name, model in self._models.items()}
        here = {worker.boot for worker in view.workers}
        self._breakers.keep(here)
        for boot in [boot for boot, stream in self._streams.items() if boot not in here and not stream.turns]:
            self._streams.pop(boot).close()
        if any(worker.role == DECODE for worker in view.workers):
            self._ready.set()
        for live in list(self._live.values()):
            if live.exclude is not None:
                self._place(live)

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(self._settings.overdue_s / 4)
            late = self._clock.now() - self._settings.overdue_s
            for live in list(self._live.values()):
                if live.stream is not None and live.heard < late:
                    self._feed(live, t.Overdue())

    def _feed(self, live: Live, event: t.TurnEvent) -> None:
        self._weigh(live, event)
        commands = live.turn.on(event)
        self._observe(live.turn.ref, event, commands)
        self._do(live, commands)

    def _weigh(self, live: Live, event: t.TurnEvent) -> None:
        """What an event says of the worker that the turn is on."""
        turn, now = live.turn, self._clock.now()
        if turn.boot is None or turn.ended:
            return
        match event:
            case t.Arrived(output) if output.ref == turn.ref:
                pace = (now - live.heard) / len(output.tokens) if live.gave and output.tokens else None
                self._tell_avoided(turn.boot, self._breakers.served(turn.boot, pace, now), "slow")
            case t.AttemptLost(failed) if failed.ref == turn.ref and failed.error.status.retryable:
                live.counted = not (live.gave or live.gave_before)
                # That it is full is no reason to avoid it: its load says so.
                if not isinstance(failed.error, ResourceExhausted):
                    self._tell_avoided(turn.boot, self._breakers.failed(turn.boot, now), failed.error.message)
            case t.Overdue():
                live.counted = not (live.gave or live.gave_before)
                self._tell_avoided(turn.boot, self._breakers.failed(turn.boot, now), "overdue")
            case _:
                live.counted = False

    def _tell_avoided(self, boot: BootId, avoided: bool, why: str) -> None:
        if avoided:
            _log.warning("a worker is avoided for a while: %s", why, extra={"boot": boot, "gateway": self.gateway})

    def _do(self, live: Live, commands: list[t.TurnCommand]) -> None:  # noqa: C901 - one command a row
        for command in commands:
            match command:
                case t.Give(delta):  # first, since it comes with every token
                    self._give(live, delta)
                case t.Place() if live.counted and not self._retries.try_take(self._clock.now()):
                    self._feed(live, t.NobodyServes(_SPENT))
                case t.Place(exclude):
                    self._leave(live)
                    live.exclude = exclude
                    self._after(live, self._settings.placement_s, t.NobodyServes(_NOBODY))
                    self._place(live)
                    if exclude and live.exclude is not None:
                        self._arm(live, "forgive", self._settings.second_chance_s, lambda: self._forgive(live))
                case t.SendStart() | t.SendAttach():
                    self._send(live, command)
                case t.SendCancel(boot, ref):
                    self._tell(boot, CancelAttempt(ref))
                case t.SendAcknowledge(boot, ref):
                    self._tell(boot, Acknowledge(ref))
                case t.Fail(error):
                    live.queue.put_nowait(error)
        if live.turn.ended:
            self._leave(live)
            live.exclude = None
            for name in tuple(live.timers):
                self._disarm(live, name)

    def _place(self, live: Live) -> None:
        assert live.exclude is not None
        asks, given = live.generation, live.turn.given
        near = next(
            (each.boot for each in live.mirrors if each.role == DECODE), asks.claim.near if asks.claim else None
        )
        more = asks.sampling.max_tokens - len(given)
        asked = self._asked(asks.tenant, (*asks.prompt, *given) if given else asks.prompt, more, live.exclude, near)
        route = self._router.route(asked, self._clock.now())
        if route is None:
            return
        live.route = route.after(live.mirrors, self._view) if live.mirrors else route
        live.mirrors = route.mirrors
        worker, live.exclude = route.worker, None
        self._disarm(live, t.NobodyServes.__name__)
        self._disarm(live, "forgive")
        self._breakers.placed(worker.boot, self._clock.now())
        live.stream = self._stream(worker)
        live.stream.turns += 1
        self._feed(live, t.Placed(worker.boot))

    def _asked(
        self, tenant: TenantId, prompt: Sequence[int], more: int, exclude: frozenset[BootId], near: BootId | None
    ) -> Asked:
        in_flight = {boot: stream.turns for boot, stream in self._streams.items()}
        return Asked(tenant, prompt, more, in_flight, self._avoided(exclude), near)

    def _avoided(self, exclude: frozenset[BootId]) -> frozenset[BootId]:
        """With those whose breakers are open, unless nobody would be left: better a sick worker than none."""
        avoided = exclude | self._breakers.avoided(self._clock.now())
        able = (worker.boot for worker in self._view.workers if worker.role == DECODE and not worker.draining)
        return avoided if avoided == exclude or any(boot not in avoided for boot in able) else exclude

    def _forgive(self, live: Live) -> None:
        live.exclude = frozenset()
        self._place(live)

    def _leave(self, live: Live) -> None:
        if live.stream is not None:
            live.stream.turns -= 1
            live.stream = None

    def _stream(self, worker: Worker) -> Stream:
        stream = self._streams.get(worker.boot)
        if stream is None:
            peer = self._peers.decode(worker.address)
            stream = Stream(worker.boot, peer, self._settings.stream, self._group, self._on_batch, self._on_end)
            self._streams[worker.boot] = stream
        return stream

    def _send(self, live: Live, command: t.SendStart | t.SendAttach) -> None:
        stream = self._streams[command.boot]
        live.heard = self._clock.now()
        if isinstance(command, t.SendAttach):
            stream.send(Attach(command.ref, command.have))
            return
        asked, route = live.generation, live.route
        assert route is not None, "it was placed"
        remaining_ms = max(round((live.ends - self._clock.now()) * 1000), 1)
        start = Start(
            command.ref, asked.tenant, asked.prompt, asked.sampling, command.forced, route.candidates, remaining_ms,
            asked.priority, None if asked.claim is None else asked.claim.session, route.remote_min_tokens,
            route.holders, route.copies, route.mirrors,
            NO_RETENTION if asked.claim is None else asked.claim.retention,
        )  # fmt: skip
        stream.send(start)

    def paused(self, boot: BootId, paused: Paused) -> None:
        """Tell the worker that ran a session's turn what the session waits for."""
        self._tell(boot, paused)

    def _tell(self, boot: BootId, command: CancelAttempt | Acknowledge | Paused) -> None:
        stream = self._streams.get(boot)
        if stream is not None:
            stream.tell(command)

    def _on_batch(self, batch: StepBatch) -> None:
        if batch.kept and self.on_kept is not None:
            self.on_kept(batch.kept)
        for output in batch.outputs:
            live = self._live.get(output.ref.turn)
            if live is not None:
                self._feed(live, t.Arrived(output) if isinstance(output, Output) else t.AttemptLost(output))

    def _on_end(self, stream: Stream, ended: Ended) -> None:
        if stream.boot in self._streams:
            self._tell_avoided(stream.boot, self._breakers.failed(stream.boot, self._clock.now()), "its stream ended")
        for live in list(self._live.values()):
            if live.turn.boot == stream.boot and not live.turn.ended:
                lost = t.StreamBroken(stream.boot) if ended.greeted else t.WorkerLost(stream.boot, ended.refused)
                self._feed(live, lost)

    def _give(self, live: Live, delta: Delta) -> None:
        live.heard, live.gave = self._clock.now(), True
        if delta.handoff is not None and live.route is not None and live.route.why is not None:
            delta = replace(delta, why=live.route.why)
        if live.queue.qsize() < live.bound:
            live.queue.put_nowait(delta)
            return
        slow = ResourceExhausted(f"the client left {live.bound} outputs unread, so its request was cancelled")
        self._feed(live, t.ClientGone())
        live.queue.put_nowait(slow)

    def _after(self, live: Live, seconds: float, event: t.TurnEvent) -> None:
        self._arm(live, type(event).__name__, seconds, lambda: self._feed(live, event))

    def _arm(self, live: Live, name: str, seconds: float, call: Callable[[], None]) -> None:
        self._disarm(live, name)
        live.timers[name] = self._clock.call_later(seconds, call)

    def _disarm(self, live: Live, name: str) -> None:
        timer = live.timers.pop(name, None)
        if timer is not None:
            timer.cancel()


def _bounded(model: ServedModel, view: View) -> ServedModel:
    room = min((worker.max_tokens for worker in view.workers if worker.role == DECODE), default=model.spec.max_tokens)
    return replace(model, spec=replace(model.spec, max_tokens=min(model.spec.max_tokens, room)))
