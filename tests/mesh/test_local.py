"""A whole mesh in one process: what it says, and how it takes the death of its parts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest

from batonmesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc, mesh_pb2, mesh_pb2_grpc
from runtime.config import (
    Config,
    EngineConfig,
    MeshConfig,
    ModelConfig,
    SimulatedConfig,
    TimingConfig,
    WorkerConfig,
)
from runtime.domain.sequence import Sampling
from runtime.engine.simulated import SimulatedDecoder, continuation
from runtime.errors import ConfigError, StartError
from runtime.ids import WorkerId
from runtime.kv_settings import HandoffConfig
from runtime.mesh.local import LocalMesh, local_mesh

PROMPT = list(b"The quick brown fox jumps over the lazy dog, again and again and again.")
TOKENS = 60
PREFILL, DECODE_0, DECODE_1 = WorkerId("prefill-0"), WorkerId("decode-0"), WorkerId("decode-1")


def config(state: Path, **changes: object) -> Config:
    """A small simulated mesh: one worker that prefills, two that decode, one millisecond a step."""
    small = Config(
        mesh=MeshConfig(name="test", state=state),
        model=ModelConfig(simulated=SimulatedConfig(max_tokens=4096, base_ms=1.0)),
        engine=EngineConfig(pages=256, page_tokens=8, step_tokens=32),
        handoff=HandoffConfig(remote_min_tokens=16),
        timing=TimingConfig(lease_s=1.0),
    )
    return small.model_copy(update=changes)


def expected(prompt: list[int] = PROMPT, tokens: int = TOKENS) -> str:
    decoder = SimulatedDecoder()
    return "".join(decoder.push(token) for token in continuation(prompt, Sampling(max_tokens=tokens)))


class Asking:
    """A user by gRPC."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._inference = inference_pb2_grpc.InferenceStub(channel)
        self._mesh = mesh_pb2_grpc.MeshStub(channel)

    async def ask(
        self, prompt: list[int] = PROMPT, meanwhile: Callable[[str], None] = lambda text: None
    ) -> tuple[str, inference_pb2.Final]:
        """The whole answer and its end; `meanwhile` hears the text so far with each message."""
        request = inference_pb2.GenerateRequest(
            model="simulated",
            prompt=inference_pb2.Prompt(tokens=common_pb2.TokenIds(ids=prompt)),
            sampling=common_pb2.Sampling(max_tokens=TOKENS, temperature=0),
        )
        text, final = "", inference_pb2.Final()
        async for message in self._inference.Generate(request, timeout=30):
            text += "".join(event.text for event in message.events)
            if message.HasField("final"):
                final = message.final
                text += final.text
            meanwhile(text)
        return text, final

    async def workers(self) -> dict[str, mesh_pb2.Worker]:
        topology = await self._mesh.Topology(mesh_pb2.TopologyRequest(), timeout=5)
        return {worker.id: worker for worker in topology.view.workers}


@asynccontextmanager
async def asked(mesh: LocalMesh) -> AsyncIterator[Asking]:
    async with grpc.aio.insecure_channel(mesh.grpc) as channel:
        yield Asking(channel)


async def test_a_mesh_answers_with_pages_from_its_prefill_worker(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path)) as mesh, asked(mesh) as user:
        text, final = await user.ask()
        assert text == expected()
        assert final.handoff.prefill_worker == PREFILL
        assert final.handoff.moved_tokens == len(PROMPT) - 1
        assert final.handoff.transport == "shm", "they are on one host"
        assert final.attempts == 1
        mesh.check()


async def test_the_topology_names_every_worker_with_its_load_and_device(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path)) as mesh, asked(mesh) as user:
        workers = await user.workers()
        assert {name: worker.role for name, worker in workers.items()} == {
            "prefill-0": "prefill",
            "decode-0": "decode",
            "decode-1": "decode",
        }
        assert {worker.device for worker in workers.values()} == {"cpu x1"}
        assert all(worker.HasField("load") for worker in workers.values())


async def test_openai_s_api_answers_beside_grpc(tmp_path: Path) -> None:
    async with (
        local_mesh(config(tmp_path), http_port=0) as mesh,
        httpx.AsyncClient(base_url=mesh.http, verify=False) as http,
    ):
        body = {"model": "simulated", "prompt": bytes(PROMPT).decode(), "max_tokens": TOKENS, "temperature": 0}
        answer = await http.post("/v1/completions", json=body)
        assert answer.json()["choices"][0]["text"] == expected()


async def test_an_answer_goes_on_without_a_gap_when_its_decode_worker_is_killed(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path)) as mesh, asked(mesh) as user, asyncio.TaskGroup() as group:
        killed: list[asyncio.Task[None]] = []

        def kill_once(text: str) -> None:
            busy = [name for name, running in mesh.workers.items() if running.engine.load().running]
            if len(text) > 40 and busy and not killed:
                killed.append(group.create_task(mesh.kill(busy[0])))

        text, final = await user.ask(meanwhile=kill_once)
        assert killed
        assert text == expected()
        assert final.attempts == 2
        assert final.usage.completion_tokens == TOKENS


async def test_without_a_prefill_worker_decode_workers_prefill_themselves(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path)) as mesh, asked(mesh) as user:
        await mesh.kill(PREFILL)
        text, final = await user.ask()
        assert text == expected()
        assert final.handoff.moved_tokens == 0


async def test_a_worker_that_leaves_is_not_asked_and_one_that_comes_back_is(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path)) as mesh, asked(mesh) as user:
        await mesh.stop(DECODE_0)
        assert DECODE_0 not in await user.workers()
        assert [(await user.ask())[1].attempts for _ in range(3)] == [1, 1, 1]
        back = await mesh.start(DECODE_0)
        await mesh.stop(DECODE_1)
        text, final = await user.ask()
        assert (text, final.attempts) == (expected(), 1)
        assert back.engine.load().pages.cached > 0


async def test_a_killed_worker_leaves_the_view_when_its_lease_runs_out(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path)) as mesh:
        await mesh.kill(DECODE_0)
        async with asyncio.timeout(5):
            async for view in mesh.controller.role.views():
                if DECODE_0 not in {worker.id for worker in view.workers}:
                    break


async def test_all_requests_of_a_crowd_are_answered_and_nothing_is_kept(tmp_path: Path) -> None:
    prompts = [[*PROMPT, *str(number).encode()] for number in range(50)]
    async with local_mesh(config(tmp_path)) as mesh, asked(mesh) as user:
        async with asyncio.TaskGroup() as group:
            answers = [group.create_task(user.ask(prompt)) for prompt in prompts]
        assert [answer.result()[0] for answer in answers] == [expected(prompt) for prompt in prompts]
        mesh.check()
        loads = [running.engine.load() for running in mesh.workers.values()]
        assert [(load.running, load.waiting, load.awaiting) for load in loads] == [(0, 0, 0)] * 3


async def test_a_mesh_can_be_started_again_on_the_port_that_it_had(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path)) as mesh:
        port = int(mesh.grpc.rpartition(":")[2])
    async with local_mesh(config(tmp_path), grpc_port=port) as mesh, asked(mesh) as user:
        assert (await user.ask())[0] == expected()


async def test_a_taken_port_is_told_by_its_field(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path / "one")) as mesh:
        port = int(mesh.grpc.rpartition(":")[2])
        with pytest.raises(StartError, match=rf"gateway\.grpc_port: port {port}"):
            await local_mesh(config(tmp_path / "two"), grpc_port=port).__aenter__()


async def test_too_little_memory_for_pages_is_told_by_its_field(tmp_path: Path) -> None:
    starved = config(tmp_path, engine=EngineConfig(pages=2, page_tokens=8, max_running=32))
    with pytest.raises(ConfigError, match=r"engine\.pages"):
        await local_mesh(starved).__aenter__()


async def test_pages_without_numbers_are_not_compressed(tmp_path: Path) -> None:
    rounded = config(tmp_path, handoff=HandoffConfig(wire="fp8"))
    with pytest.raises(ConfigError, match=r"handoff\.wire is fp8"):
        await local_mesh(rounded).__aenter__()


async def test_a_worker_that_would_serve_something_else_is_refused(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path)) as mesh:
        await mesh.kill(DECODE_0)
        mesh.config = config(tmp_path, engine=EngineConfig(pages=256, page_tokens=16))
        with pytest.raises(StartError, match=r"page_tokens is 16, but \S+ serves 8"):
            await mesh.start(DECODE_0)


async def test_a_mesh_of_one_worker_serves(tmp_path: Path) -> None:
    alone = config(tmp_path, workers=(WorkerConfig(name="decode", role="decode"),))
    async with local_mesh(alone) as mesh, asked(mesh) as user:
        assert (await user.ask())[0] == expected()
