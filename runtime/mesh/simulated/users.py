"""Simulated users of sessions: each plays its script over the simulated network, on whichever gateway answers.

They do what a careful client does: every request under a key, the same again when no answer came, and a stream that
broke is asked for from where it broke.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from runtime.domain.sessions import MAIN, Asked, Item, Key, Progress, TurnRecord
from runtime.domain.spending import Account
from runtime.errors import (
    BatonError,
    BudgetSpent,
    ContextExceeded,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from runtime.ids import SessionId, TurnId
from runtime.mesh.checking.watching import Watching
from runtime.mesh.simulated.calling import RESET, call, try_spawn
from runtime.mesh.simulated.checker import MAY_SEE, Checker
from runtime.mesh.simulated.fleet import TENANT, Fleet, Gateway
from runtime.mesh.simulated.network import Pipe
from runtime.mesh.simulated.resolving import results, submitted
from runtime.mesh.simulated.talk import Erase, Fork, Resolve, Rollback, Say, Step, Talk
from runtime.mesh.simulated.world import Process

T = TypeVar("T")
_ANSWER_S = 2.5
_PAUSE_S = 0.15
_KEEPALIVE_S = 1.0
_SILENT = Unavailable("the gateway does not answer")
_TRY_AGAIN = (Unavailable, DeadlineExceeded, ResourceExhausted)


class Room:
    """A session and its users."""

    def __init__(self, fleet: Fleet, checker: Checker, talk: Talk) -> None:
        self.fleet = fleet
        self.checker = checker
        self.talk = talk
        self.session: SessionId
        self.forgotten = False

    async def run(self) -> None:
        """To the end of all scripts."""
        await asyncio.sleep(self.talk.at)
        process = Process(self.fleet.world, self.talk.name)
        key, account = Key(self.talk.name, b"create"), Account(self.talk.limits)
        made = await persist(
            self.fleet,
            process,
            lambda at: at.sessions.create(
                TENANT, self.fleet.spec.name, key, rerender=self.talk.rerender, account=account
            ),
        )
        self.session = made.id
        async with asyncio.TaskGroup() as group:
            for number, script in enumerate(self.talk.scripts):
                group.create_task(User(self, f"{self.talk.name}.{number}").play(script))


class User:
    def __init__(self, room: Room, name: str) -> None:
        self._room = room
        self._fleet = room.fleet
        self._world = room.fleet.world
        self._process = Process(room.fleet.world, name)
        self._branch = MAIN
        self._steps = 0

    async def play(self, script: tuple[Step, ...]) -> None:
        for step in script:
            self._steps += 1
            self._world.say(self._process.name, f"{type(step).__name__} on {self._branch}")
            try:
                await self._do(step)
            except NotFound:
                # Of a session that another user has deleted, or of a turn that another has rolled back.
                if not self._room.forgotten and isinstance(step, Say):
                    raise
            except (ContextExceeded, BudgetSpent) as error:
                self._world.say(self._process.name, f"has talked too long: {error.message}")
            except FailedPrecondition as error:
                self._refused(step, error)
            await asyncio.sleep(self._room.talk.pause_s)

    async def _do(self, step: Step) -> None:
        session, key = self._room.session, Key(f"{self._process.name}.{self._steps}", b"step")
        match step:
            case Say():
                await Turn(self._room, self._process, self._branch, step).run()
            case Fork(name, back):
                at = await self._turn(back)
                forking = self._branch
                await self._persist(lambda it: it.sessions.store.fork(TENANT, session, forking, at, name, key))
                self._branch = name
            case Rollback(back):
                to, branch = await self._turn(back), self._branch
                await self._persist(lambda it: it.sessions.store.rollback(TENANT, session, branch, to, key))
            case Resolve():
                await self._resolve(step, key)
            case Erase():
                self._room.forgotten = True
                await self._persist(lambda it: it.erasing.erase(TENANT, session))
                await self._look_for(session)
            case _:
                self._room.forgotten = True
                await self._persist(lambda it: it.sessions.store.delete(TENANT, session))

    async def _resolve(self, step: Resolve, key: Key) -> None:
        await asyncio.sleep(step.late_s)
        session, branch = self._room.session, self._branch
        calls = await self._persist(lambda it: it.sessions.store.calls(TENANT, session, branch))
        told = results(self._world, step, calls, f"{self._process.name}.{self._steps}")
        if told:
            await self._persist(lambda it: submitted(it, session, branch, step, told, key))

    async def _look_for(self, session: SessionId) -> None:
        """Once somebody was told that it was erased, nobody finds it (invariant 13)."""
        self._room.checker.erased.add(session)
        with suppress(NotFound):
            await self._persist(lambda it: it.sessions.store.get(TENANT, session))
            self._world.violated(13, f"session {session} was erased, and is found")

    async def _turn(self, back: int) -> TurnId | None:
        """The committed turn that is so many before the branch's last; None is the beginning."""
        session, branch = self._room.session, self._branch
        items = await self._persist(lambda it: it.sessions.store.items(TENANT, session, branch, 0, 1000))
        turns = [*dict.fromkeys(turn for _, turn, _ in items)]
        return turns[-1 - back] if back < len(turns) else None

    async def _persist(self, work: Callable[[Gateway], Awaitable[T]]) -> T:
        return await persist(self._fleet, self._process, work)

    def _refused(self, step: Step, error: FailedPrecondition) -> None:
        late = error.field is not None and error.field.startswith(("results", "items"))
        if error.field not in ("on_conflict", "expected_head", "branch") and not late:
            raise error
        self._world.say(self._process.name, f"{type(step).__name__} is refused: {error.message}")


class Turn:
    """One turn as its user sees it, to its end or until the user goes away."""

    def __init__(self, room: Room, process: Process, branch: str, say: Say) -> None:
        self._room = room
        self._fleet = room.fleet
        self._world = room.fleet.world
        self._process = process
        self._branch = branch
        self._say = say
        self._seen = Watching(process.name, self._world.violated)
        self._turn: TurnRecord | None = None
        self._asked: Asked | None = None
        self._began = self._world.loop.time()
        self._cut_at = None if say.cut_after is None else self._began + say.cut_after

    async def run(self) -> None:
        stopping = self._world.group.create_task(self._stop_later())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._say.leaves_after):
                    await self._watch()
        finally:
            stopping.cancel()
        error = None if self._seen.ending is None else self._seen.ending.error
        if error is not None and error.status.code not in MAY_SEE | {"context", "budget"}:
            self._world.report(AssertionError(f"a turn failed with {error.status.code}: {error}"))

    async def _watch(self) -> None:
        while self._seen.ending is None:
            gateway = await self._fleet.some_gateway()
            try:
                self._asked = self._asked or await self._wanted()
                await self._stream(gateway)
            except _TRY_AGAIN as error:
                self._world.say(self._process.name, f"tries again: {error.message}")
                await asyncio.sleep(_PAUSE_S)

    async def _wanted(self) -> Asked:
        say, head = self._say, None
        if say.expects_head:
            session = self._room.session
            read = await persist(self._fleet, self._process, lambda it: it.sessions.store.get(TENANT, session))
            head = next((branch.head for branch in read[1] if branch.name == self._branch), None)
        return Asked(
            (Item("u", say.text),), say.sampling, True, say.deadline_s, head, say.expects_head, say.policy,
            not say.alone, self._room.talk.toolbox, retention=say.retention,
        )  # fmt: skip

    async def _stream(self, gateway: Gateway) -> None:
        """What a gateway shows of the turn; raises what it raises, `Unavailable` when the stream broke."""
        pipe: Pipe[TurnRecord | Progress | BatonError] = Pipe(self._world, gateway.process, self._process)
        gateway.process.at_death(pipe.reset)
        serving: asyncio.Task[None] | None = None

        def arrive() -> None:
            nonlocal serving
            serving = try_spawn(gateway.group, self._served(gateway, pipe))
            if serving is None:
                pipe.reset()

        def leave() -> None:
            if serving is not None:
                serving.cancel()

        self._world.deliver(self._process, gateway.process, arrive)
        try:
            while self._seen.ending is None:
                self._take(await self._next(gateway, pipe))
        finally:
            self._world.deliver(self._process, gateway.process, leave)
            pipe.reset()

    async def _next(
        self, gateway: Gateway, pipe: Pipe[TurnRecord | Progress | BatonError]
    ) -> TurnRecord | Progress | BatonError:
        while True:
            try:
                async with asyncio.timeout(self._patience()):
                    return await pipe.receive()
            except TimeoutError:
                if self._cut_at is not None and self._cut_at <= self._world.loop.time():
                    self._cut_at = None
                    raise RESET from None
                if self._world.silent(gateway.process, self._process):
                    raise _SILENT from None

    def _patience(self) -> float:
        if self._cut_at is None:
            return _KEEPALIVE_S
        return max(min(self._cut_at - self._world.loop.time(), _KEEPALIVE_S), 0.001)

    def _take(self, message: TurnRecord | Progress | BatonError) -> None:
        if isinstance(message, BatonError):
            raise message
        if isinstance(message, Progress):
            self._seen.take(message)
        elif self._turn is not None and self._turn.id != message.id:
            self._world.violated(4, f"{self._process.name} asked for one turn and got {self._turn.id} and {message.id}")
        else:
            self._turn = message

    async def _served(self, gateway: Gateway, pipe: Pipe[TurnRecord | Progress | BatonError]) -> None:
        """At the gateway, what its face does."""
        sessions, checker = gateway.sessions, self._room.checker
        try:
            turn = await self._opened(gateway)
            with sessions.watching(turn):
                pipe.send(turn)
                async for progress in sessions.watch(turn, self._seen.seq):
                    checker.ledger.judge_shown(progress, f"{self._process.name} at {gateway.process.name}")
                    pipe.send(progress)
        except BatonError as error:
            with suppress(BatonError):
                pipe.send(error)

    async def _opened(self, gateway: Gateway) -> TurnRecord:
        session, asked = self._room.session, self._asked
        if self._turn is not None:
            found = await gateway.sessions.store.progress(TENANT, session, self._turn.id, 0)
            return found.turn
        assert asked is not None
        key = Key(self._say.text, self._say.text.encode())
        turn, _ = await gateway.sessions.open(TENANT, session, self._branch, asked, key)
        return turn

    async def _stop_later(self) -> None:
        if self._say.halt_after is None:
            return
        await asyncio.sleep(self._say.halt_after)
        while self._turn is None:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(_PAUSE_S)
        turn, session, how = self._turn.id, self._room.session, self._say.halt
        with suppress(NotFound):
            await persist(self._fleet, self._process, lambda it: it.sessions.halt(TENANT, session, turn, how))


async def persist(fleet: Fleet, process: Process, work: Callable[[Gateway], Awaitable[T]]) -> T:
    """Ask one gateway after the other until one answers."""
    while True:
        gateway = await fleet.some_gateway()
        try:
            return await call(
                process, gateway.process, lambda at=gateway: at.group, lambda at=gateway: work(at),  # type: ignore[misc]
                seconds=_ANSWER_S, late=_SILENT,
            )  # fmt: skip
        except _TRY_AGAIN:
            await asyncio.sleep(_PAUSE_S)
