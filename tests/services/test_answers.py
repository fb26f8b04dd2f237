"""More than tokens by gRPC: several answers, the best of them, what the prompt is worth, and priorities."""

import asyncio

import grpc
import pytest

from batonmesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from runtime.domain.sampling import choice_seed
from runtime.domain.sequence import Sampling
from runtime.domain.steps import EngineCommand, Submit
from runtime.engine.core import EngineCore
from runtime.engine.simulated import continuation, prompt_scores
from runtime.wire.sequence import pack_scores
from tests.services.asking import PROMPT, SLOW, collect, expected, request
from tests.services.grpc_mesh import SPEC, GrpcMesh, grpc_mesh


async def explained(
    stub: inference_pb2_grpc.InferenceStub, asked: inference_pb2.GenerateRequest
) -> tuple[list[int], list[tuple[int, common_pb2.PromptLogprobs]], inference_pb2.Final]:
    """The tokens; after how many of them the prompt was explained, each time; the final."""
    tokens: list[int] = []
    told = []
    async for message in stub.Generate(asked, timeout=20):
        if message.HasField("prompt_logprobs"):
            told.append((len(tokens), message.prompt_logprobs))
        tokens += [event.id for event in message.events]
    return tokens, told, message.final


async def test_what_a_prompt_is_worth_comes_with_the_first_token_and_is_computed_by_who_decodes(
    mesh: GrpcMesh, stub: inference_pb2_grpc.InferenceStub
) -> None:
    asked = request(sampling=common_pb2.Sampling(max_tokens=12, temperature=0, prompt_logprobs=3))
    for _ in range(2):
        tokens, told, final = await explained(stub, asked)
        assert tokens == expected()
        ((place, found),) = told
        assert (place, found) == (0, pack_scores(prompt_scores(PROMPT, 3)))
        assert (final.handoff.moved_tokens, final.handoff.cached_tokens) == (0, 0)
    _, told, _ = await explained(stub, request())
    assert told == []
    await mesh.idle()


@pytest.mark.parametrize("after", [0, 5])
async def test_what_a_prompt_is_worth_is_told_once_when_its_decode_worker_dies(after: int) -> None:
    """Before it was told, or after."""
    async with grpc_mesh(decode=2, profile=SLOW) as mesh, grpc.aio.insecure_channel(mesh.address) as channel:
        sampling = common_pb2.Sampling(max_tokens=30, temperature=0, prompt_logprobs=1)
        call = inference_pb2_grpc.InferenceStub(channel).Generate(request(sampling=sampling))
        messages: list[inference_pb2.GenerateResponse] = []
        decoding = [worker for name, worker in mesh.workers.items() if name != "prefill-0"]

        async def begun() -> None:
            while not any(worker.role.running() for worker in decoding):  # noqa: ASYNC110
                await asyncio.sleep(0)  # no one event tells of it

        if after == 0:
            await asyncio.wait_for(begun(), 10)
        arriving = aiter(call)
        while sum(len(message.events) for message in messages) < after:
            messages.append(await anext(arriving))
        await next(worker for worker in decoding if worker.role.running()).kill()
        messages += [message async for message in arriving]
    assert [event.id for message in messages for event in message.events] == expected(30)
    assert messages[-1].final.attempts == 2
    told = [message.prompt_logprobs for message in messages if message.HasField("prompt_logprobs")]
    assert told == [pack_scores(prompt_scores(PROMPT, 1))]


async def choices_of(
    stub: inference_pb2_grpc.InferenceStub, asked: inference_pb2.GenerateRequest
) -> tuple[list[list[int]], inference_pb2.Final]:
    """The tokens of each choice, whose indices must have no gap."""
    found: list[list[int]] = [[] for _ in range(asked.n)]
    async for message in stub.Generate(asked, timeout=20):
        for event in message.events:
            assert event.index == len(found[event.choice])
            found[event.choice].append(event.id)
    return found, message.final


async def test_several_answers_have_seeds_of_their_own_and_share_the_prompt(
    mesh: GrpcMesh, stub: inference_pb2_grpc.InferenceStub
) -> None:
    sampling = common_pb2.Sampling(max_tokens=9, seed=11)
    found, final = await choices_of(stub, request(sampling=sampling, n=3))
    assert found == [continuation(PROMPT, Sampling(9, seed=choice_seed(11, index))) for index in range(3)]
    assert [choice.finish_reason for choice in final.choices] == [common_pb2.FINISH_REASON_LENGTH] * 3
    assert (final.usage.prompt_tokens, final.usage.completion_tokens) == (len(PROMPT), 27)
    assert (final.usage.cached_tokens, final.handoff.moved_tokens) == (0, len(PROMPT) - 1)
    # Pages that were filled once, by whichever worker: the others found them.
    computed = sum(worker.engine.core.load().pages.cached for worker in mesh.workers.values())
    assert computed <= 2 * (len(PROMPT) // SPEC.page_tokens) + 3 * 2
    alone, final = await choices_of(stub, request(sampling=sampling, n=1))
    assert alone == found[:1]
    assert not final.choices
    await mesh.idle()


async def test_of_the_best_answers_all_are_paid_and_the_prompt_is_told_once(
    mesh: GrpcMesh, stub: inference_pb2_grpc.InferenceStub
) -> None:
    sampling = common_pb2.Sampling(max_tokens=5, seed=3, prompt_logprobs=0)
    asked = request(sampling=sampling, n=2, best_of=4)
    found, final = await choices_of(stub, asked)
    candidates = [continuation(PROMPT, Sampling(5, seed=choice_seed(3, index))) for index in range(4)]
    # The simulated engine's tokens are all as likely: of equals the earlier come first.
    assert found == candidates[:2]
    assert final.usage.completion_tokens == 20
    _, told, _ = await explained(stub, asked)
    assert told == [(0, pack_scores(prompt_scores(PROMPT, 0)))]
    await mesh.idle()


async def test_a_client_that_hangs_up_frees_all_its_answers() -> None:
    async with grpc_mesh(profile=SLOW) as mesh, grpc.aio.insecure_channel(mesh.address) as channel:
        asked = request(sampling=common_pb2.Sampling(max_tokens=900), n=4)
        call = inference_pb2_grpc.InferenceStub(channel).Generate(asked)
        heard: set[int] = set()
        while heard != {0, 1, 2, 3}:
            message = await call.read()
            assert isinstance(message, inference_pb2.GenerateResponse)
            heard |= {event.choice for event in message.events}
        assert mesh.gateway.in_flight() == 4
        call.cancel()
        await mesh.idle()


async def test_the_priority_reaches_the_engines_of_both_workers(
    mesh: GrpcMesh, stub: inference_pb2_grpc.InferenceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, set[int]] = {}
    for name, worker in mesh.workers.items():

        def apply(command: EngineCommand, name: str = name, known: EngineCore = worker.engine.core) -> None:
            if isinstance(command, Submit):
                told.setdefault(name, set()).add(command.sequence.priority)
            EngineCore.apply(known, command)

        monkeypatch.setattr(worker.engine.core, "apply", apply)
    assert (await collect(stub, request(priority=-7)))[0] == expected()
    assert told == {"prefill-0": {-7}, "decode-0": {-7}}
