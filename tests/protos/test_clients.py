"""Both thin clients against a whole mesh over real gRPC."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import pytest

import batonmesh
from batonmesh import Answer, AsyncClient, Client
from batonmesh.v1 import inference_pb2
from runtime.domain.sequence import Sampling
from runtime.engine.simulated import WORDS, SimulatedTokenizer, StepProfile, continuation, prompt_scores
from runtime.wire.sequence import pack_scores
from tests.services.grpc_mesh import SPEC, GrpcMesh, grpc_mesh

T = TypeVar("T")
PROMPT = "Tell me something about relay races. " * 4
SLOW = StepProfile(base_ms=20.0)


@pytest.fixture
async def mesh() -> AsyncIterator[GrpcMesh]:
    async with grpc_mesh() as running:
        yield running


def expected(prompt: str, max_tokens: int) -> str:
    tokens = continuation(SimulatedTokenizer().encode(prompt), Sampling(max_tokens, temperature=0))
    return "".join(WORDS[token - 257] for token in tokens)


def blocking(mesh: GrpcMesh, work: Callable[[Client], T]) -> asyncio.Future[T]:
    """Run `work` with a blocking client on a thread, since the mesh lives on this event loop."""

    def run() -> T:
        with Client(mesh.address) as client:
            return work(client)

    return asyncio.get_running_loop().run_in_executor(None, run)


def check(answer: Answer) -> None:
    assert answer.text == expected(PROMPT, 20)
    assert len(answer.tokens) == 20
    assert answer.final.finish_reason == 2
    assert answer.final.usage == inference_pb2.Usage(prompt_tokens=len(PROMPT), completion_tokens=20)
    assert answer.final.handoff.moved_tokens == len(PROMPT) - 1
    assert answer.final.handoff.prefill_worker == "prefill-0"


async def test_a_whole_answer(mesh: GrpcMesh) -> None:
    async with AsyncClient(mesh.address) as client:
        check(await client.complete("simulated", PROMPT, max_tokens=20, temperature=0))


async def test_a_whole_answer_for_those_who_block(mesh: GrpcMesh) -> None:
    def complete(client: Client) -> Answer:
        return client.complete("simulated", PROMPT, max_tokens=20, temperature=0, timeout=20)

    check(await blocking(mesh, complete))


async def test_a_whole_answer_with_what_the_prompt_is_worth_in_both_clients(mesh: GrpcMesh) -> None:
    wanted = pack_scores(prompt_scores(SimulatedTokenizer().encode(PROMPT), 1))
    async with AsyncClient(mesh.address) as client:
        assert (await client.complete("simulated", PROMPT, max_tokens=2, prompt_logprobs=1)).prompt_logprobs == wanted
        assert (await client.complete("simulated", PROMPT, max_tokens=2)).prompt_logprobs is None
    answer = await blocking(mesh, lambda client: client.complete("simulated", PROMPT, max_tokens=2, prompt_logprobs=1))
    assert answer.prompt_logprobs == wanted


async def test_several_answers_at_once(mesh: GrpcMesh) -> None:
    async with AsyncClient(mesh.address) as client:
        answer = await client.complete("simulated", PROMPT, max_tokens=4, seed=5, n=3, best_of=3)
        alone = await client.complete("simulated", PROMPT, max_tokens=4, seed=5)
    assert [len(choice.tokens) for choice in answer.choices] == [4, 4, 4]
    assert len({choice.text for choice in answer.choices}) == 3
    assert (answer.text, answer.tokens) == (alone.text, alone.tokens)
    assert alone.choices == answer.choices[:1]


async def test_an_answer_as_it_comes(mesh: GrpcMesh) -> None:
    async with AsyncClient(mesh.address) as client, client.generate("simulated", PROMPT, max_tokens=5) as stream:
        *tokens, final = [event async for event in stream]
    assert [token.index for token in tokens if isinstance(token, inference_pb2.TokenEvent)] == [0, 1, 2, 3, 4]
    assert isinstance(final, inference_pb2.Final)


async def test_a_stream_that_is_closed_early_frees_everything_in_the_mesh() -> None:
    async with grpc_mesh(profile=SLOW) as mesh, AsyncClient(mesh.address) as client:
        async with client.generate("simulated", PROMPT, max_tokens=1000) as stream:
            await anext(stream)
        await mesh.idle()


async def test_a_blocking_stream_that_is_closed_early_frees_everything_in_the_mesh() -> None:
    async with grpc_mesh(profile=SLOW) as mesh:
        with Client(mesh.address) as client:
            stream = client.generate("simulated", PROMPT, max_tokens=1000)

            def begin() -> batonmesh.Event:
                with stream:
                    return next(stream)

            first = await asyncio.get_running_loop().run_in_executor(None, begin)
            assert isinstance(first, inference_pb2.TokenEvent)
            await mesh.idle()


async def test_a_timeout_ends_the_answer_with_its_error() -> None:
    async with grpc_mesh(profile=SLOW) as mesh, AsyncClient(mesh.address) as client:
        with pytest.raises(batonmesh.DeadlineExceeded):
            await client.complete("simulated", PROMPT, max_tokens=1000, timeout=0.3)
        await mesh.idle()


async def test_counting_listing_and_topology(mesh: GrpcMesh) -> None:
    async with AsyncClient(mesh.address) as client:
        assert await client.count_tokens("simulated", "hello") == 5
        assert await client.count_tokens("simulated", [{"role": "user", "content": "hi"}]) == len(
            "user: hi\nassistant:"
        )
        (model,) = await client.list_models()
        assert (model.name, model.max_tokens) == ("simulated", SPEC.max_tokens)
        workers = {worker.id: worker.role for worker in (await client.topology()).workers}
        assert workers == {"prefill-0": "prefill", "decode-0": "decode"}


async def test_counting_listing_and_topology_for_those_who_block(mesh: GrpcMesh) -> None:
    assert await blocking(mesh, lambda client: client.count_tokens("simulated", [1, 2, 3])) == 3
    assert [model.name for model in await blocking(mesh, lambda client: client.list_models())] == ["simulated"]
    assert len((await blocking(mesh, lambda client: client.topology())).workers) == 2


async def test_an_error_names_its_field_in_both_clients(mesh: GrpcMesh) -> None:
    async with AsyncClient(mesh.address) as client:
        with pytest.raises(batonmesh.NotFound, match="served are: simulated") as refused:
            await client.complete("gpt-5", PROMPT)
        assert (refused.value.field, refused.value.retryable) == ("model", False)
    with pytest.raises(batonmesh.InvalidArgument) as refused_too:
        await blocking(mesh, lambda client: client.complete("simulated", PROMPT, temperature=float("nan")))
    assert refused_too.value.field == "temperature"


async def test_nobody_listening_is_unavailable_in_both_clients() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(batonmesh.Unavailable):
            await client.list_models(timeout=5)
    with Client("127.0.0.1:1") as waiting, pytest.raises(batonmesh.Unavailable):
        waiting.list_models(timeout=5)
