"""Several choices to one prompt: each is a whole answer by itself, and together they are one request."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessageParam

from runtime.domain.generation import Delta, Generation
from runtime.domain.messages import Handoff
from runtime.domain.sampling import choice_seed
from runtime.domain.sequence import MAX_SEED, FinishReason, Sampled
from runtime.engine.simulated import StepProfile
from runtime.errors import BatonError, Unavailable
from runtime.roles.deltas import Deltas
from tests.services.openai.one_worker import MODEL, SPEC, one_worker
from tests.services.openai.scripted import ScriptedGateway
from tests.services.openai.serving import serving

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello, this is a prompt of some pages"}]
PROMPT = len("user: \nassistant:") + len(str(HELLO[0]["content"]))
ASKED: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 6, "seed": 11}


async def test_choices_differ_and_the_first_is_the_one_that_n_1_gives() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        lone = await api.client.chat.completions.create(**ASKED)
        three = await api.client.chat.completions.create(**ASKED, n=3, logprobs=True)
        again = await api.client.chat.completions.create(**ASKED, n=3)
        await mesh.worker.idle()
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert [choice.finish_reason for choice in three.choices] == ["length"] * 3
    assert [len((choice.logprobs and choice.logprobs.content) or ()) for choice in three.choices] == [6] * 3
    assert len(set(texts)) == 3
    assert texts[0] == lone.choices[0].message.content
    assert texts == [choice.message.content for choice in again.choices]
    assert three.usage is not None
    assert (three.usage.prompt_tokens, three.usage.completion_tokens) == (PROMPT, 18)
    assert three.usage.total_tokens == PROMPT + 18


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_a_stream_interleaves_choices_that_are_those_of_the_whole_answer(path: str) -> None:
    prompt = {"messages": HELLO} if path.startswith("chat") else {"prompt": "hello, this is a prompt of some pages"}
    asked = {"model": MODEL, "max_tokens": 6, "seed": 11, "n": 3} | prompt
    streamed = asked | {"stream": True, "stream_options": {"include_usage": True}}
    async with one_worker(StepProfile(base_ms=2)) as mesh, serving(mesh.gateway) as api:
        body = (await api.http.post(f"/v1/{path}", json=streamed)).text
        whole = (await api.http.post(f"/v1/{path}", json=asked)).json()
    *events, done = [line.removeprefix("data: ") for line in body.splitlines() if line]
    *chunks, usage = map(json.loads, events)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 18
    assert usage["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    pieces = [choice for chunk in chunks for choice in chunk["choices"]]
    for place, choice in enumerate(whole["choices"]):
        mine = [piece for piece in pieces if piece["index"] == place]
        texts = [piece.get("text", piece.get("delta", {}).get("content")) or "" for piece in mine]
        assert "".join(texts) == choice.get("text", choice.get("message", {}).get("content"))
        assert [piece["finish_reason"] for piece in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == "length"
    order = [piece["index"] for piece in pieces if piece["finish_reason"] is None]
    assert order != sorted(order)


async def test_choices_share_the_pages_of_the_prompt() -> None:
    async with one_worker(StepProfile(base_ms=1)) as mesh, serving(mesh.gateway) as api:
        stream = await api.client.chat.completions.create(**ASKED, n=3, stream=True)
        ends = [chunk async for chunk in stream if chunk.choices[0].finish_reason]
    cached = {end.choices[0].index: (end.model_extra or {})["baton"]["handoff"]["cached_tokens"] for end in ends}
    full = (PROMPT - 1) // SPEC.page_tokens * SPEC.page_tokens
    assert full > 0
    assert cached == {0: 0, 1: full, 2: full}


async def test_a_choice_that_fails_fails_the_request_and_the_others_are_left() -> None:
    gateway = ScriptedGateway([Delta(0, (Sampled(257),), "x"), Unavailable("nobody", retry_after_ms=1)])
    async with serving(gateway.role) as api:
        refused = await api.http.post("/v1/chat/completions", json=ASKED | {"n": 4})
    assert refused.status_code == 503
    assert gateway.left.is_set()


async def test_each_choice_has_what_is_left_of_the_time_and_a_seed_of_its_own() -> None:
    gateway = ScriptedGateway([Delta(0, (Sampled(257),), "x", FinishReason.STOP)])
    async with serving(gateway.role) as api:
        headers = {"x-baton-deadline-ms": "5000"}
        await api.http.post("/v1/chat/completions", json=ASKED | {"n": 3}, headers=headers)
    assert [asked.sampling.seed for asked in gateway.asked] == [choice_seed(11, index) for index in range(3)]
    assert all(4 < asked.deadline_s < 5 for asked in gateway.asked)
    times = [asked.deadline_s for asked in gateway.asked]
    assert times == sorted(times, reverse=True)


async def test_a_client_that_goes_away_cancels_all_its_choices() -> None:
    async with one_worker(StepProfile(base_ms=5)) as mesh, serving(mesh.gateway) as api:
        asked = ASKED | {"n": 4, "max_tokens": 400, "stream": True}
        async with api.http.stream("POST", "/v1/chat/completions", json=asked) as response:
            async for line in response.aiter_lines():
                if '"index":3,"delta":{"content":' in line:
                    break
        assert mesh.worker.role.running()
        await mesh.worker.idle()
        assert mesh.gateway.in_flight() == 0


LIKELY = {choice_seed(11, index): logprob for index, logprob in enumerate((-2.0, -3.0, -1.0, -2.0))}


class Weighing(ScriptedGateway):
    """Each seed's answer is two tokens of a likelihood of its own; the text is the seed's place."""

    @asynccontextmanager
    async def open(self, generation: Generation) -> AsyncIterator[Deltas]:
        self.asked.append(generation)
        seed = generation.sampling.seed
        queue: asyncio.Queue[Delta | BatonError] = asyncio.Queue()
        place, logprob = list(LIKELY).index(seed), LIKELY[seed]
        handoff = Handoff(3, cached_tokens=place)
        queue.put_nowait(Delta(0, (Sampled(257, logprob - 1),), str(place), handoff=handoff))
        queue.put_nowait(Delta(1, (Sampled(257, logprob + 1),), "", FinishReason.STOP))
        yield Deltas(queue)


async def test_the_best_are_the_likeliest_and_all_are_paid() -> None:
    gateway = Weighing()
    asked = {"model": MODEL, "prompt": "x", "seed": 11, "best_of": 4}
    async with serving(gateway.role) as api:
        one = (await api.http.post("/v1/completions", json=asked)).json()
        three = (await api.http.post("/v1/completions", json=asked | {"n": 3, "logprobs": 0})).json()
    assert [choice["text"] for choice in one["choices"]] == ["2"]
    assert [(choice["index"], choice["text"]) for choice in three["choices"]] == [(0, "2"), (1, "0"), (2, "3")]
    assert three["choices"][0]["logprobs"]["token_logprobs"] == [-2.0, 0.0]
    assert one["choices"][0]["logprobs"] is None
    for found in (one, three):
        assert found["usage"]["completion_tokens"] == 8
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "it was computed for the first candidate"
    assert [each.sampling.logprobs for each in gateway.asked] == [0] * 8


@pytest.mark.parametrize("asked", [{"n": 3, "best_of": 2}, {"best_of": 17}, {"best_of": 2, "stream": True}])
async def test_a_best_of_that_cannot_be_is_refused(asked: dict[str, object]) -> None:
    async with serving(ScriptedGateway().role) as api:
        refused = await api.http.post("/v1/completions", json={"model": MODEL, "prompt": "x"} | asked)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "best_of")


def test_seeds_of_choices_are_seeds_and_differ() -> None:
    seeds = {choice_seed(seed, index) for seed in (0, 1, MAX_SEED) for index in range(16)}
    assert len(seeds) == 48
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    assert choice_seed(5, 0) == 5
