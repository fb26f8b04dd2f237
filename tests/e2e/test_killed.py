"""A mesh of real processes: a decode worker that is killed in mid-answer, and what thousands of requests leave."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import openai
import psutil
import pytest
import yaml

from batonmesh.v1 import common_pb2 as common
from batonmesh.v1 import inference_pb2 as pb
from batonmesh.v1 import inference_pb2_grpc, mesh_pb2, mesh_pb2_grpc
from runtime.cli.talk.script import EARLIER
from runtime.mesh.listening import free_ports
from tests.e2e.asking import Answer, ask, request
from tests.scale import scaled

BATON = Path(sys.executable).with_name("baton")
NEW = 400


@dataclass(frozen=True, slots=True)
class Mesh:
    grpc: str
    http: str
    state: Path


@contextmanager
def running(config: dict[str, object], state: Path) -> Iterator[Mesh]:
    http, native, dashboard = free_ports(3)
    tree = {
        **config,
        "mesh": {"name": "tested", "state": str(state)},
        "gateway": {"http_port": http, "grpc_port": native},
        "ray": {"dashboard_port": dashboard},
    }
    file = state / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(tree))
    subprocess.run([BATON, "up", "--config", file, "--detach"], check=True, timeout=300)
    try:
        yield Mesh(f"127.0.0.1:{native}", f"http://127.0.0.1:{http}", state)
    finally:
        subprocess.run([BATON, "down", "--config", file], check=True, timeout=120)


def listener(address: str) -> int:
    """The process that listens at an address."""
    port = int(address.rpartition(":")[2])
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
            return int(connection.pid)
    raise LookupError(address)


async def view(channel: grpc.aio.Channel) -> mesh_pb2.View:
    answer = await mesh_pb2_grpc.MeshStub(channel).Topology(mesh_pb2.TopologyRequest(), timeout=10)
    return answer.view


def conversation() -> pb.GenerateRequest:
    """The demo's conversation, asked on beyond its end-of-turn token so that there is time to kill somebody."""
    messages = [pb.ChatMessage(role=who, content=said) for line in EARLIER for who, said in
                (("user", line.user), ("assistant", line.answer))]  # fmt: skip
    messages.append(pb.ChatMessage(role="user", content="What is my dog called?"))
    return pb.GenerateRequest(
        model="baton-recall",
        prompt=pb.Prompt(chat=pb.Chat(messages=messages)),
        sampling=common.Sampling(temperature=0.0, max_tokens=NEW, ignore_eos=True),
    )


@pytest.mark.timeout(600)
async def test_a_killed_decode_worker_costs_no_token_and_repeats_none(tmp_path: Path) -> None:
    # Leases this short have loads renewed some times a second, which tells the worker that is at work.
    with running({"model": {"dtype": "float32"}, "timing": {"lease_s": 2.0}}, tmp_path) as mesh:
        async with grpc.aio.insecure_channel(mesh.grpc) as channel:
            wanted = await ask(channel, conversation())
            await all_idle(channel)
            answer = Answer()
            killed = ""
            async for response in inference_pb2_grpc.InferenceStub(channel).Generate(conversation(), timeout=120):
                answer.take(response)
                if len(answer.tokens) >= NEW // 8 and not killed:
                    killed = await busiest(channel)
                    os.kill(listener(killed), signal.SIGKILL)
            assert answer.tokens == wanted.tokens
            assert answer.text == wanted.text
            assert answer.final is not None
            assert answer.final.attempts == 2
            assert answer.final.usage.completion_tokens == NEW
            await comes_back(channel, killed)
        client = openai.OpenAI(base_url=f"{mesh.http}/v1", api_key="none", max_retries=0)
        said = client.completions.create(model="baton-recall", prompt="Hello.", max_tokens=8, temperature=0)
        assert said.choices[0].finish_reason in ("stop", "length")


async def all_idle(channel: grpc.aio.Channel) -> None:
    async with asyncio.timeout(30):
        while any(worker.load.running for worker in (await view(channel)).workers):  # noqa: ASYNC110 - it polls others
            await asyncio.sleep(0.05)


async def busiest(channel: grpc.aio.Channel) -> str:
    """The decode worker that runs our one request; loads are renewed some times a lease."""
    while True:
        for worker in (await view(channel)).workers:
            if worker.role == "decode" and worker.load.running:
                return worker.address
        await asyncio.sleep(0.02)


async def comes_back(channel: grpc.aio.Channel, killed: str) -> None:
    async with asyncio.timeout(60):
        while True:
            decoding = [worker.address for worker in (await view(channel)).workers if worker.role == "decode"]
            if len(decoding) == 2 and killed not in decoding:
                return
            await asyncio.sleep(0.1)


def memory(mesh: Mesh) -> dict[int, int]:
    """RSS in bytes of each of our processes: those that Ray calls by our classes' names."""
    found = {}
    for process in psutil.process_iter(["pid", "cmdline", "memory_info"]):
        title = " ".join(process.info["cmdline"] or ())
        if title.startswith("ray::") and ("Baton" in title or "ServeReplica" in title) and owned(process, mesh):
            found[process.info["pid"]] = process.info["memory_info"].rss
    return found


def owned(process: psutil.Process, mesh: Mesh) -> bool:
    """Whether a process belongs to this mesh and not to another on this machine."""
    return str(mesh.state) in " ".join(process.environ().values())


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_ten_thousand_requests_leave_no_memory_behind(tmp_path: Path) -> None:
    config: dict[str, object] = {
        "model": {"simulated": {"max_tokens": 2048}},
        "engine": {"pages": 256, "max_running": 64},
    }
    with running(config, tmp_path) as mesh:
        async with grpc.aio.insecure_channel(mesh.grpc) as channel:
            await load(channel, scaled(1000, 2000))
            before = memory(mesh)
            await load(channel, scaled(2000, 8000))
            after = memory(mesh)
    assert len(before) >= 5
    assert before.keys() == after.keys()
    grown = {pid: after[pid] / before[pid] for pid in before}
    assert max(grown.values()) <= 1.02, grown


async def load(channel: grpc.aio.Channel, requests: int) -> None:
    """That many requests, 32 at a time, each of its own prompt."""
    numbers = iter(range(requests))

    async def client() -> None:
        for number in numbers:
            prompt = [97 + (number * 7 + place * place) % 26 for place in range(number % 300 + 1)]
            await ask(channel, request("simulated", prompt, max_tokens=16))

    async with asyncio.TaskGroup() as group:
        for _ in range(32):
            group.create_task(client())
