"""What users meet by gRPC: answers, refusals by field, and a mesh that goes on serving."""

import asyncio
import math
from collections.abc import Callable

import grpc
import pytest

from batonmesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from runtime.domain.generation import Delta
from runtime.domain.sequence import Sampled, Sampling
from runtime.engine.simulated import VOCAB, WORDS, continuation
from runtime.errors import BatonError, Unavailable
from runtime.roles.deltas import Deltas
from runtime.services.choices import Lone
from runtime.services.inference import gather
from tests.services.asking import PROMPT, SLOW, collect, expected, request
from tests.services.grpc_mesh import SPEC, GrpcMesh, grpc_mesh, told

FIRST_WORD = VOCAB - len(WORDS)


async def test_an_answer_over_the_split_path_has_the_tokens_of_an_unharmed_engine(
    mesh: GrpcMesh, stub: inference_pb2_grpc.InferenceStub
) -> None:
    tokens, final = await collect(stub, request())
    assert tokens == expected()
    assert final.handoff.moved_tokens == len(PROMPT) - 1
    assert final.handoff.transport == "grpc"
    await mesh.idle()


async def test_a_second_answer_says_what_was_cached(stub: inference_pb2_grpc.InferenceStub) -> None:
    _, first = await collect(stub, request())
    tokens, second = await collect(stub, request())
    assert tokens == expected()
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == (len(PROMPT) - 1) // SPEC.page_tokens * SPEC.page_tokens


async def test_without_max_tokens_an_answer_goes_to_the_end_of_the_context(
    stub: inference_pb2_grpc.InferenceStub,
) -> None:
    room = 20
    prompt = inference_pb2.Prompt(tokens=common_pb2.TokenIds(ids=[65] * (SPEC.max_tokens - room)))
    tokens, final = await collect(stub, request(prompt=prompt, sampling=common_pb2.Sampling()))
    assert len(tokens) == room
    assert final.finish_reason == common_pb2.FINISH_REASON_LENGTH


async def test_logprobs_come_when_they_are_asked_for(stub: inference_pb2_grpc.InferenceStub) -> None:
    asked = request(sampling=common_pb2.Sampling(max_tokens=2, logprobs=0))
    events = [event async for message in stub.Generate(asked) for event in message.events]
    assert all(event.HasField("logprob") for event in events)
    events = [event async for message in stub.Generate(request()) for event in message.events]
    assert not any(event.HasField("logprob") for event in events)


async def test_an_answer_keeps_to_its_grammar(stub: inference_pb2_grpc.InferenceStub) -> None:
    choices = common_pb2.Choices(texts=["yes", "no"])
    sampling = common_pb2.Sampling(max_tokens=12, grammar=common_pb2.Grammar(choice=choices))
    tokens, final = await collect(stub, request(sampling=sampling))
    assert bytes(tokens).decode() in choices.texts
    assert final.finish_reason == common_pb2.FINISH_REASON_STOP
    assert final.handoff.moved_tokens == len(PROMPT) - 1


async def test_bad_words_are_not_said(stub: inference_pb2_grpc.InferenceStub) -> None:
    asked = {"max_tokens": 12, "temperature": 0}
    said = continuation_texts()
    sampling = common_pb2.Sampling(**asked, bad_words=[said[0].strip()])  # type: ignore[arg-type]
    tokens, final = await collect(stub, request(sampling=sampling))
    assert said[0] not in [WORDS[token - FIRST_WORD] for token in tokens]
    assert final.usage.completion_tokens == 12


def continuation_texts() -> list[str]:
    return [WORDS[token - FIRST_WORD] for token in expected()]


TEXT = inference_pb2.Prompt(text="hello")
BAD = {
    "an unknown model": ("model", request(model="gpt-5"), grpc.StatusCode.NOT_FOUND),
    "no model": ("model", request(model=""), grpc.StatusCode.INVALID_ARGUMENT),
    "no prompt": ("prompt", request(prompt=None), grpc.StatusCode.INVALID_ARGUMENT),
    "an empty text": ("prompt", request(prompt=inference_pb2.Prompt(text="")), grpc.StatusCode.INVALID_ARGUMENT),
    "no messages": (
        "messages",
        request(prompt=inference_pb2.Prompt(chat=inference_pb2.Chat())),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a prompt beyond the context": (
        "prompt",
        request(prompt=inference_pb2.Prompt(text="x" * 5000), sampling=None),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a prompt that leaves no room for max_tokens": (
        "max_tokens",
        request(sampling=common_pb2.Sampling(max_tokens=SPEC.max_tokens)),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a text over the limit": (
        "prompt",
        request(prompt=inference_pb2.Prompt(text="x" * (5 << 20))),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a token outside the vocabulary": (
        "prompt",
        request(prompt=inference_pb2.Prompt(tokens=common_pb2.TokenIds(ids=[SPEC.vocab]))),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "no tokens to make": (
        "max_tokens",
        request(sampling=common_pb2.Sampling(max_tokens=0)),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "fewer than no tokens": (
        "max_tokens",
        request(sampling=common_pb2.Sampling(max_tokens=-5)),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a grammar of no kind": (
        "grammar",
        request(sampling=common_pb2.Sampling(max_tokens=1, grammar=common_pb2.Grammar())),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a grammar that cannot be compiled": (
        "grammar",
        request(sampling=common_pb2.Sampling(max_tokens=1, grammar=common_pb2.Grammar(lark="start: missing"))),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a bias of a token outside the vocabulary": (
        "logit_bias",
        request(sampling=common_pb2.Sampling(max_tokens=1, logit_bias={SPEC.vocab: 1.0})),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a bias that is no number": (
        "logit_bias",
        request(sampling=common_pb2.Sampling(max_tokens=1, logit_bias={1: math.nan})),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a penalty out of range": (
        "presence_penalty",
        request(sampling=common_pb2.Sampling(max_tokens=1, presence_penalty=3)),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "more log-probabilities than a message holds": (
        "prompt_logprobs",
        request(
            prompt=inference_pb2.Prompt(text="x" * 4000), sampling=common_pb2.Sampling(max_tokens=1, prompt_logprobs=20)
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "no answer": ("n", request(n=0), grpc.StatusCode.INVALID_ARGUMENT),
    "too many answers": ("n", request(n=17), grpc.StatusCode.INVALID_ARGUMENT),
    "the best of too many": ("best_of", request(best_of=17), grpc.StatusCode.INVALID_ARGUMENT),
    "the best of fewer than are wanted": ("best_of", request(n=3, best_of=2), grpc.StatusCode.INVALID_ARGUMENT),
    "too many bad words": (
        "bad_words",
        request(sampling=common_pb2.Sampling(max_tokens=1, bad_words=["x"] * 65)),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a temperature out of range": (
        "temperature",
        request(sampling=common_pb2.Sampling(temperature=2.5)),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a temperature that is no number": (
        "temperature",
        request(sampling=common_pb2.Sampling(temperature=math.nan)),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "no time": ("deadline_ms", request(deadline_ms=0), grpc.StatusCode.INVALID_ARGUMENT),
}


@pytest.mark.parametrize("case", list(BAD))
async def test_bad_input_is_refused_by_its_field_and_the_mesh_goes_on_serving(
    stub: inference_pb2_grpc.InferenceStub, case: str
) -> None:
    field, asked, status = BAD[case]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await collect(stub, asked)
    assert refused.value.code() is status
    assert told(refused.value)["baton-error-field"] == field
    assert field in (refused.value.details() or "")
    assert (await collect(stub, request()))[0] == expected()


async def test_a_prompt_beyond_the_context_is_told_the_limit_and_its_length(
    stub: inference_pb2_grpc.InferenceStub,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await collect(stub, BAD["a prompt beyond the context"][1])
    assert f"{SPEC.max_tokens} tokens" in (refused.value.details() or "")
    assert "5000 tokens" in (refused.value.details() or "")


async def test_a_prompt_of_100_megabytes_is_refused_and_the_connection_stays(
    stub: inference_pb2_grpc.InferenceStub,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await collect(stub, request(prompt=inference_pb2.Prompt(text="x" * 100_000_000)))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (refused.value.details() or "")
    assert (await collect(stub, request()))[0] == expected()


@pytest.mark.parametrize(
    ("field", "message", "damage"),
    [
        ("prompt.text", "prompt.text is not valid UTF-8", lambda data: data.replace(b"hello", b"h\xffllo")),
        ("model", "model is not valid UTF-8", lambda data: data.replace(b"simulated", b"simul\xc3ted")),
        ("message", "cut off", lambda data: data[:-3]),
    ],
)
async def test_a_message_that_does_not_parse_is_refused_by_its_field(
    mesh: GrpcMesh, field: str, message: str, damage: Callable[[bytes], bytes]
) -> None:
    data = damage(request(prompt=TEXT).SerializeToString())
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        call = channel.unary_stream("/batonmesh.v1.Inference/Generate", None, None)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(data, timeout=10).read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in (refused.value.details() or "")
    assert told(refused.value)["baton-error-field"] == field


async def test_a_client_that_hangs_up_frees_everything_at_once() -> None:
    async with grpc_mesh(profile=SLOW) as mesh, grpc.aio.insecure_channel(mesh.address) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(request(sampling=common_pb2.Sampling(max_tokens=900)))
        await call.read()
        call.cancel()
        await mesh.idle()


@pytest.mark.parametrize("deadline_ms", [1, 60])
async def test_a_deadline_inside_the_request_ends_it(deadline_ms: int) -> None:
    async with grpc_mesh(profile=SLOW) as mesh, grpc.aio.insecure_channel(mesh.address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await collect(stub, request(sampling=common_pb2.Sampling(max_tokens=900), deadline_ms=deadline_ms))
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await mesh.idle()


async def test_the_deadline_of_the_call_is_handed_down_with_the_request() -> None:
    async with grpc_mesh(profile=SLOW) as mesh, grpc.aio.insecure_channel(mesh.address) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(request(), timeout=5)
        await call.read()
        (live,) = mesh.gateway._live.values()
        assert live.generation.deadline_s <= 5.05  # gRPC rounds timeouts up as they travel
        call.cancel()


async def test_the_gateways_own_limit_bounds_a_request_that_names_none() -> None:
    async with grpc_mesh(profile=SLOW, deadline_s=0.1) as mesh, grpc.aio.insecure_channel(mesh.address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await collect(stub, request(sampling=common_pb2.Sampling(max_tokens=900)))
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_an_answer_survives_the_death_of_its_decode_worker_without_a_lost_or_repeated_token() -> None:
    async with grpc_mesh(decode=2, profile=SLOW) as mesh, grpc.aio.insecure_channel(mesh.address) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(
            request(sampling=common_pb2.Sampling(max_tokens=60, temperature=0))
        )
        events: list[inference_pb2.TokenEvent] = []
        async for message in call:
            if not events:
                busy = [
                    worker for name, worker in mesh.workers.items() if name != "prefill-0" and worker.role.running()
                ]
                await busy[0].kill()
            events.extend(message.events)
    assert [event.index for event in events] == list(range(60))
    assert [event.id for event in events] == expected(60)
    assert message.final.attempts == 2
    assert message.final.usage.completion_tokens == 60


async def test_what_is_ready_together_is_gathered_up_to_what_is_not_or_failed() -> None:
    queue: asyncio.Queue[Delta | BatonError] = asyncio.Queue()
    arrivals = Lone(Deltas(queue))
    one, two, three = (Delta(index, (Sampled(index),), "x") for index in range(3))
    failure = Unavailable("the decode worker was lost")
    queue.put_nowait(one)
    queue.put_nowait(two)
    assert await gather(await anext(arrivals), arrivals) == ([(0, one), (0, two)], None)
    queue.put_nowait(three)
    queue.put_nowait(failure)
    assert await gather(await anext(arrivals), arrivals) == ([(0, three)], failure)


async def test_many_answers_at_once_are_all_right(mesh: GrpcMesh, stub: inference_pb2_grpc.InferenceStub) -> None:
    prompts = [tuple(range(40 + number, 40 + number + 30)) for number in range(48)]

    async def one(prompt: tuple[int, ...]) -> list[int]:
        tokens = inference_pb2.Prompt(tokens=common_pb2.TokenIds(ids=prompt))
        return (await collect(stub, request(prompt=tokens)))[0]

    answers = await asyncio.gather(*map(one, prompts))
    assert answers == [continuation(prompt, Sampling(12, temperature=0)) for prompt in prompts]
    await mesh.idle()
