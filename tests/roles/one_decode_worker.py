"""One decode worker with a simulated engine, its gateways and its prefill workers in the hands of a test."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from runtime.clock import LoopClock
from runtime.domain.batching import Limits
from runtime.domain.messages import AttemptFailed, Output, PrefillCandidate, Start
from runtime.domain.retention import KeptFor
from runtime.domain.sequence import Ref, Sampling, Sequence
from runtime.domain.sources import Policy
from runtime.domain.steps import EngineCommand, Exported, Frame, Prefill, StepOutput, Submit
from runtime.engine.simulated import SimulatedEngine, StepProfile, simulated_spec
from runtime.errors import EngineFailed
from runtime.ids import BootId, GatewayId, Ids, SequenceId, TenantId, TurnId, WorkerId
from runtime.ports import DecodePeer
from runtime.roles.decode import DecodeRole, DecodeSettings, Link
from tests.roles.virtual import settle
from tests.roles.wires import Prefilling, Receiving

PAGE = 4
SPEC = simulated_spec("simulated", PAGE, max_tokens=200)
TENANT, SALT = TenantId("tenant"), b"salt"
TURN = TurnId("turn")
GREEDY = Sampling(max_tokens=8, temperature=0.0)
PROMPT = tuple(range(18))
P, Q = (PrefillCandidate(WorkerId(name), BootId(f"boot-{name}"), name) for name in "pq")
STEP_S = 0.1
SETTINGS = DecodeSettings(
    Policy(remote_min_tokens=6, detached_tokens=4, transfers=2),
    progress_s=2.0,
    grace_s=3.0,
    heartbeat_s=1.0,
    batches=16,
)


def ref(attempt: int = 1, turn: str = TURN) -> Ref:
    return Ref(TurnId(turn), 1, attempt)


def start(
    attempt: int = 1,
    turn: str = TURN,
    prompt: tuple[int, ...] = PROMPT,
    candidates: tuple[PrefillCandidate, ...] = (),
    sampling: Sampling = GREEDY,
    tenant: TenantId = TENANT,
    remaining_ms: int = 60_000,
) -> Start:
    return Start(ref(attempt, turn), tenant, prompt, sampling, (), candidates, remaining_ms)


class Engine(SimulatedEngine):
    """Remembers what it was told, and dies when a test says so."""

    def __init__(self, pages: int) -> None:
        profile = StepProfile(base_ms=1000 * STEP_S)
        super().__init__(SPEC, pages, Limits(step_tokens=32, max_running=8), profile, LoopClock())
        self.told: list[EngineCommand] = []
        self.dies = False

    def tell(self, command: EngineCommand) -> None:
        self.told.append(command)
        super().tell(command)

    def submits(self) -> list[SequenceId]:
        return [command.sequence.id for command in self.told if isinstance(command, Submit)]

    async def steps(self) -> AsyncIterator[StepOutput]:
        async for output in super().steps():
            if self.dies:
                raise EngineFailed("it burnt")
            yield output


@dataclass
class Gateway:
    """A gateway's end of a stream: what came of it so far. A test that leaves `reads` off lets it pile up."""

    link: Link
    outputs: list[Output | AttemptFailed] = field(default_factory=list)
    kept: list[KeptFor] = field(default_factory=list)
    batches: int = 0
    ended: bool = False

    async def read(self) -> None:
        async for batch in self.link.batches():
            self.batches += 1
            self.outputs.extend(batch.outputs)
            self.kept.extend(batch.kept)
        self.ended = True

    @property
    def tokens(self) -> list[int]:
        """All tokens, whose indices must have no gap."""
        found: list[int] = []
        for output in self.outputs:
            if isinstance(output, Output):
                assert output.index <= len(found)
                found[output.index :] = [sampled.token for sampled in output.tokens]
        return found

    @property
    def failures(self) -> list[tuple[int, str]]:
        """(attempt, code) of what failed."""
        return [(each.ref.attempt, each.error.status.code) for each in self.outputs if isinstance(each, AttemptFailed)]


@dataclass
class Worker:
    role: DecodeRole
    engine: Engine
    transport: Receiving
    prefill_workers: dict[str, Prefilling]
    group: asyncio.TaskGroup
    serving: "asyncio.Task[None]"

    @asynccontextmanager
    async def gateway(self, *, reads: bool = True) -> AsyncIterator[Gateway]:
        """A stream; leaving the context breaks it."""
        async with AsyncExitStack() as stack:
            gateway = Gateway(await stack.enter_async_context(self.role.attach(GatewayId("gateway"))))
            if reads:
                task = self.group.create_task(gateway.read())
                stack.callback(task.cancel)
            yield gateway

    def held(self) -> tuple[int, int, int]:
        """Requests, sequences, and pages that are not free or cached."""
        load = self.engine.load()
        sequences = load.running + load.waiting + load.awaiting
        return self.role.running(), sequences, load.pages.owned + load.pages.landing


class _Peers:
    def __init__(self, workers: dict[str, Prefilling]) -> None:
        self._workers = workers

    def prefill(self, address: str) -> Prefilling:
        return self._workers[address]

    def decode(self, address: str) -> DecodePeer:
        raise AssertionError(address)


@asynccontextmanager
async def decode_worker(pages: int = 64, *, serves: bool = True) -> AsyncIterator[Worker]:
    engine, transport, prefill_workers = Engine(pages), Receiving(), {"p": Prefilling(), "q": Prefilling()}
    role = DecodeRole(
        engine, transport, _Peers(prefill_workers), {TENANT: SALT}, BootId("boot"), Ids(random.Random(1)),
        LoopClock(), SETTINGS,
    )  # fmt: skip
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(role.run() if serves else settle())
        await settle()
        yield Worker(role, engine, transport, prefill_workers, group, serving)
        serving.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds; half a minute at most."""
    for _ in range(int(30 / STEP_S)):
        if condition():
            return
        await asyncio.sleep(STEP_S)
    raise AssertionError("it did not come true")


async def frames_of(prompt: Iterable[int]) -> list[Frame]:
    """What a prefill worker pushes for a prompt."""
    engine, tokens = Engine(64), tuple(prompt)
    engine.tell(Submit(Sequence(SequenceId("p"), tokens, GREEDY, SALT), Prefill(len(tokens) - 1, 0)))
    async for step in engine.steps():
        return [event.frame for event in step.events if isinstance(event, Exported)]
    raise AssertionError("unreachable")
