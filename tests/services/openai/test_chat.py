"""Chat completions of real roles, as OpenAI's own client reads them."""

import asyncio

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from runtime.domain.sequence import Sampling
from runtime.engine.simulated import SimulatedTokenizer, continuation
from tests.services.openai.one_worker import MODEL, SPEC, one_worker
from tests.services.openai.serving import serving

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
PROMPT = len("user: hello\nassistant:")


def oracle(tokens: int, seed: int = 0, temperature: float = 0.0) -> list[str]:
    """What an unharmed engine answers to HELLO, token by token."""
    tokenizer = SimulatedTokenizer()
    prompt = tokenizer.render_chat([dict(message) for message in HELLO])
    sampling = Sampling(max_tokens=tokens, temperature=temperature, seed=seed)
    return [tokenizer.decoder().push(token) for token in continuation(prompt, sampling)]


async def test_a_whole_answer_has_text_finish_usage_and_its_handoff() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        answer = await api.client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5, temperature=0)
    (choice,) = answer.choices
    assert choice.message.content == "".join(oracle(5))
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert answer.model == MODEL
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        PROMPT,
        5,
        PROMPT + 5,
    )
    baton = (answer.model_extra or {})["baton"]
    assert baton["attempts"] == 1
    assert baton["handoff"]["prompt_tokens"] == PROMPT
    assert baton["handoff"]["prefill_worker"] is None


async def test_a_stream_opens_with_the_role_and_has_one_event_for_every_token() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        stream = await api.client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=5, temperature=0, stream=True
        )
        chunks = [chunk async for chunk in stream]
    first, *pieces, last = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert [piece.choices[0].delta.content for piece in pieces] == oracle(5)
    assert {piece.choices[0].finish_reason for piece in pieces} == {None}
    assert last.choices[0].finish_reason == "length"
    assert last.choices[0].delta.content is None
    assert (last.model_extra or {})["baton"]["attempts"] == 1
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


async def test_usage_ends_a_stream_only_when_asked_for() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        stream = await api.client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=3, stream=True, stream_options={"include_usage": True}
        )
        *chunks, last = [chunk async for chunk in stream]
        body = {"model": MODEL, "messages": HELLO, "max_tokens": 3, "stream": True}
        plain = await api.http.post("/v1/chat/completions", json=body)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (PROMPT, 3)
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks)
    assert '"usage"' not in plain.text
    assert plain.text.endswith("\n\ndata: [DONE]\n\n")
    assert plain.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_the_blocking_client_reads_both_forms() -> None:
    def talk(url: str) -> tuple[str | None, str]:
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            whole = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4, temperature=0)
            with client.chat.completions.create(
                model=MODEL, messages=HELLO, max_tokens=4, temperature=0, stream=True
            ) as stream:
                pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        return whole.choices[0].message.content, "".join(pieces)

    async with one_worker() as mesh, serving(mesh.gateway) as api:
        whole, streamed = await asyncio.to_thread(talk, api.url)
    assert whole == streamed == "".join(oracle(4))


async def test_a_seed_repeats_an_answer_and_none_does_not() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:

        async def answer(seed: int | None) -> str | None:
            reply = await api.client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, seed=seed)
            return reply.choices[0].message.content

        assert await answer(11) == await answer(11) == "".join(oracle(8, seed=11, temperature=1.0))
        assert len({await answer(None) for _ in range(3)}) == 3


async def test_a_stop_string_ends_an_answer_and_is_not_part_of_it() -> None:
    words = oracle(8)
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        for stop in (words[3], ["never said", words[3]]):
            answer = await api.client.chat.completions.create(
                model=MODEL, messages=HELLO, max_tokens=8, temperature=0, stop=stop
            )
            assert answer.choices[0].message.content == "".join(words[:3])
            assert answer.choices[0].finish_reason == "stop"


async def test_an_answer_without_a_limit_may_fill_the_context() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        answer = await api.client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0)
        short = await api.client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=2)
    assert answer.usage is not None
    assert short.usage is not None
    assert answer.usage.total_tokens == SPEC.max_tokens
    assert short.usage.completion_tokens == 2


async def test_text_parts_and_developers_are_what_plain_text_and_systems_are() -> None:
    parts: list[ChatCompletionMessageParam] = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
        *HELLO,
    ]
    plain: list[ChatCompletionMessageParam] = [{"role": "system", "content": "be brief"}, *HELLO]
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        answers = [
            await api.client.chat.completions.create(model=MODEL, messages=each, max_tokens=6, temperature=0)
            for each in (parts, plain)
        ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


async def test_an_answer_can_be_sent_back_as_it_came() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        first = await api.client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3)
        said: ChatCompletionMessageParam = first.choices[0].message.model_dump()  # type: ignore[assignment]
        second = await api.client.chat.completions.create(model=MODEL, messages=[*HELLO, said, *HELLO], max_tokens=3)
    assert second.usage is not None
    assert second.usage.completion_tokens == 3


async def test_tokens_found_in_the_prefix_cache_are_counted_as_cached() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        cached = []
        for _ in range(2):
            answer = await api.client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, PROMPT // SPEC.page_tokens * SPEC.page_tokens]
