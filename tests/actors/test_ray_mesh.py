"""A mesh on Ray, from the command line to the last token, and through the deaths of its processes."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from actors.processes import of_run
from batonmesh import Client
from batonmesh.v1.inference_pb2 import Final
from batonmesh.v1.mesh_pb2 import Worker
from runtime.domain.sequence import Sampling
from runtime.engine.simulated import SimulatedDecoder, continuation
from tests.actors.running import START_S, Mesh, process_at

pytestmark = pytest.mark.timeout(START_S * 1.5)

PROMPT = "The quick brown fox jumps over the lazy dog, again and again and again."
LONG = 3000
PATIENCE_S = 60.0
T = TypeVar("T")


def expected(tokens: int, prompt: str = PROMPT) -> str:
    decoder = SimulatedDecoder()
    return "".join(decoder.push(token) for token in continuation(list(prompt.encode()), Sampling(max_tokens=tokens)))


@pytest.fixture
def client(mesh: Mesh) -> Iterator[Client]:
    with Client(mesh.grpc) as client:
        yield client


def test_it_answers_by_grpc_with_pages_from_its_prefill_worker(client: Client) -> None:
    answer = client.complete("simulated", PROMPT, max_tokens=20, temperature=0.0, timeout=30)
    assert answer.text == expected(20)
    assert answer.final.handoff.prefill_worker == "prefill-0"
    assert answer.final.handoff.moved_tokens == len(PROMPT) - 1


def test_it_answers_by_http_token_by_token(mesh: Mesh) -> None:
    body = {"model": "simulated", "prompt": PROMPT, "max_tokens": 20, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{mesh.http}/v1/completions", json=body, timeout=30) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    texts = [choice["text"] for line in lines[:-1] for choice in json.loads(line)["choices"]]
    assert "".join(texts) == expected(20)
    assert len(texts) >= 20


def test_status_shows_every_worker_with_its_role_device_and_pages(mesh: Mesh) -> None:
    workers = mesh.workers()
    assert {name: row["role"] for name, row in workers.items()} == {
        "prefill-0": "prefill",
        "decode-0": "decode",
        "decode-1": "decode",
    }
    assert {row["device"] for row in workers.values()} == {"cpu x1"}
    assert {row["pages"] for row in workers.values()} == {1024}
    table = mesh.baton("status")
    assert table.status == 0
    for row in workers.values():
        assert str(row["worker"]) in table.out
        assert str(row["boot"]) in table.out


def test_a_second_up_says_that_one_is_running_and_disturbs_nothing(mesh: Mesh) -> None:
    again = mesh.baton("up")
    assert again.status == 1
    assert f"a mesh named tested is running already: pid {mesh.record.pid}, since " in again.err
    assert mesh.grpc in again.err
    assert mesh.folder.log.stat().st_size > 0
    assert mesh.workers().keys() == {"prefill-0", "decode-0", "decode-1"}


def test_another_mesh_on_a_port_of_ours_is_refused_by_the_field(mesh: Mesh, tmp_path: Path) -> None:
    for field, port in (("http_port", mesh.http_port), ("grpc_port", mesh.grpc_port)):
        other = Mesh(tmp_path, field.replace("_", "-"), gateway={field: port}).baton("up")
        assert other.status == 1
        assert f"gateway.{field}: port {port} on 127.0.0.1 cannot be used" in other.err
    other = Mesh(tmp_path, "dashboard", ray={"dashboard_port": mesh.dashboard_port}).baton("up")
    assert f"ray.dashboard_port: port {mesh.dashboard_port}" in other.err


def test_an_answer_goes_on_when_its_decode_worker_is_killed_and_the_worker_comes_back(
    mesh: Mesh, client: Client
) -> None:
    events = []
    with client.generate("simulated", PROMPT, max_tokens=LONG, temperature=0.0, timeout=100) as stream:
        events.append(next(stream))
        victim = until(lambda: busy(client))
        process_at(victim.address, mesh.record.run).kill()
        events.extend(stream)
    assert "".join(event.text for event in events) == expected(LONG)
    assert isinstance(events[-1], Final)
    assert events[-1].attempts == 2
    back = until(
        lambda: [worker for worker in serving(client) if worker.id == victim.id and worker.boot != victim.boot]
    )
    assert back[0].role == "decode"
    assert client.complete("simulated", PROMPT, max_tokens=5, temperature=0.0, timeout=30).text == expected(5)


def test_requests_go_on_without_the_controller_and_a_new_one_finds_the_workers(mesh: Mesh, client: Client) -> None:
    before = client.topology(timeout=5)
    (controller,) = (each for each in of_run(mesh.record.run) if "BatonController" in " ".join(each.cmdline()))
    controller.kill()
    assert client.complete("simulated", PROMPT, max_tokens=5, temperature=0.0, timeout=30).text == expected(5)
    until(lambda: client.topology(timeout=5).incarnation > before.incarnation)
    until(lambda: len(serving(client)) == len(before.workers))
    assert {worker.id: worker.boot for worker in serving(client)} == {each.id: each.boot for each in before.workers}


def is_next(worker: Worker, other: Worker) -> bool:
    """Whether `other` is a later generation of `worker`."""
    return other.id == worker.id and other.boot != worker.boot


def serving(client: Client) -> list[Worker]:
    return list(client.topology(timeout=5).workers)


def busy(client: Client) -> Worker | None:
    """The decode worker that said last that it runs something."""
    return next((worker for worker in serving(client) if worker.role == "decode" and worker.load.running), None)


def until(condition: Callable[[], T | None]) -> T:
    """Ask other processes again and again, until they give something."""
    ends = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.05)
    return found
