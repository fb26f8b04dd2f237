"""A simulated mesh that keeps sessions, and a user of it by gRPC."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from batonmesh.v1 import common_pb2, inference_pb2, session_pb2_grpc
from batonmesh.v1 import session_pb2 as pb
from runtime.config import (
    Config,
    EngineConfig,
    GatewayConfig,
    MeshConfig,
    ModelConfig,
    SessionsConfig,
    SimulatedConfig,
    TimingConfig,
)
from runtime.domain.sequence import Sampling
from runtime.engine.simulated import SimulatedTokenizer, continuation
from runtime.kv_settings import HandoffConfig
from runtime.mesh.local import LocalMesh, local_mesh

NEW = 12


def config(state: Path, *, base_ms: float = 0.5, lease_s: float = 1.0) -> Config:
    return Config(
        mesh=MeshConfig(name="sessions", state=state),
        model=ModelConfig(simulated=SimulatedConfig(max_tokens=4096, base_ms=base_ms)),
        engine=EngineConfig(pages=1024, page_tokens=8, step_tokens=64),
        handoff=HandoffConfig(remote_min_tokens=32),
        timing=TimingConfig(lease_s=5.0),
        gateway=GatewayConfig(drain_s=0.05),
        sessions=SessionsConfig(lease_s=lease_s, store_grace_s=2.0),
    )


@dataclass
class Seen:
    """A turn's stream as it came; that its messages are in order and without gap is checked as they come."""

    opened: pb.Turn | None = None
    ended: pb.Turn | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    seq: int | None = None

    def take(self, message: pb.TurnMessage) -> None:
        assert message.seq == (0 if self.seq is None else self.seq + 1)
        assert self.ended is None
        self.seq = message.seq
        if message.HasField("opened"):
            self.opened = message.opened
        elif message.HasField("tokens"):
            assert message.tokens.index == len(self.tokens)
            self.tokens += message.tokens.ids
            self.text += message.tokens.text
        else:
            self.ended = message.ended

    @property
    def end(self) -> pb.Turn:
        assert self.ended is not None
        return self.ended


class User:
    def __init__(self, stub: session_pb2_grpc.SessionsStub) -> None:
        self.stub = stub

    async def create(self) -> str:
        return (await self.stub.CreateSession(pb.CreateSessionRequest(model="simulated"), timeout=20)).id

    async def run(self, session: str, text: str = "Hello.", seen: Seen | None = None, **more: object) -> Seen:
        seen = seen or Seen()
        async for message in self.stub.RunTurn(run(session, text, **more), timeout=60):
            seen.take(message)
        return seen

    async def resume(self, session: str, turn: str, seen: Seen | None = None) -> Seen:
        seen = seen or Seen()
        asked = pb.ResumeTurnRequest(session=session, turn=turn, after_seq=seen.seq)
        async for message in self.stub.ResumeTurn(asked, timeout=60):
            seen.take(message)
        return seen

    async def branch(self, session: str, name: str = "main") -> pb.Branch:
        state = await self.stub.GetSession(pb.GetSessionRequest(session=session), timeout=20)
        (found,) = [branch for branch in state.branches if branch.name == name]
        return found

    async def said(self, session: str, branch: str = "") -> list[str]:
        items = await self.stub.ListItems(pb.ListItemsRequest(session=session, branch=branch, limit=1000), timeout=20)
        return [item.message.content for item in items.items]


def run(session: str, text: str = "Hello.", **more: object) -> pb.RunTurnRequest:
    items = [inference_pb2.ChatMessage(role="user", content=text)]
    sampling = common_pb2.Sampling(max_tokens=NEW, temperature=0)
    return pb.RunTurnRequest(**({"session": session, "items": items, "sampling": sampling} | more))  # type: ignore[arg-type]


def expected(*texts: str, tokens: int = NEW) -> list[list[int]]:
    """The answers of an unharmed engine to a conversation of these texts, each of `tokens` tokens."""
    tokenizer, context, answers = SimulatedTokenizer(), list[int](), list[list[int]]()
    for text in texts:
        message: dict[str, object] = {"role": "user", "content": text}
        context += tokenizer.render_delta([], [message]) if context else tokenizer.render_chat([message])
        answers.append(continuation(context, Sampling(tokens, temperature=0)))
        context += answers[-1]
    return answers


@asynccontextmanager
async def session_mesh(state: Path, *, base_ms: float = 0.5) -> AsyncIterator[tuple[LocalMesh, User]]:
    async with local_mesh(config(state, base_ms=base_ms)) as mesh, user(mesh.grpc) as somebody:
        yield mesh, somebody


@asynccontextmanager
async def user(address: str) -> AsyncIterator[User]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield User(session_pb2_grpc.SessionsStub(channel))
