"""Log-probabilities in both APIs' shapes, whole and streamed."""

import math

from runtime.domain.generation import Delta
from runtime.domain.sequence import FinishReason, Sampled
from tests.services.openai.one_worker import MODEL
from tests.services.openai.scripted import ScriptedGateway
from tests.services.openai.serving import serving

ALFA, BRAVO, CHARLIE = 257, 258, 259
# The first token's text is held back: it comes with the second.
SCRIPT = (
    Delta(0, (Sampled(ALFA, -0.5, ((ALFA, -0.5), (BRAVO, -1.0))),), ""),
    Delta(
        1,
        (
            Sampled(BRAVO, -0.25, ((BRAVO, -0.25), (ALFA, -2.0))),
            Sampled(CHARLIE, -3.0, ((ALFA, -0.1), (BRAVO, -math.inf))),
        ),
        " alfa bravo charlie",
        FinishReason.LENGTH,
    ),
)


async def test_a_chat_answer_explains_each_token() -> None:
    async with serving(ScriptedGateway(SCRIPT).role) as api:
        answer = await api.client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], logprobs=True, top_logprobs=2
        )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    first, second, third = logprobs.content
    assert (first.token, first.logprob, first.bytes) == (" alfa", -0.5, list(b" alfa"))
    assert [(each.token, each.logprob) for each in second.top_logprobs] == [(" bravo", -0.25), (" alfa", -2.0)]
    assert [each.logprob for each in third.top_logprobs] == [-0.1, -9999.0]


async def test_a_chat_stream_with_logprobs_has_an_event_for_every_token_and_the_text_with_the_last() -> None:
    async with serving(ScriptedGateway(SCRIPT).role) as api:
        stream = await api.client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], logprobs=True, top_logprobs=2, stream=True
        )
        chunks = [chunk.choices[0] async for chunk in stream]
    shown = [
        (chunk.delta.content, [each.token for each in chunk.logprobs.content or []])
        for chunk in chunks
        if chunk.logprobs is not None
    ]
    assert shown == [("", [" alfa"]), ("", [" bravo"]), (" alfa bravo charlie", [" charlie"])]


async def test_a_stream_without_logprobs_has_no_event_for_a_token_whose_text_is_held_back() -> None:
    async with serving(ScriptedGateway(SCRIPT).role) as api:
        stream = await api.client.completions.create(model=MODEL, prompt="x", stream=True)
        texts = [chunk.choices[0].text async for chunk in stream]
    assert texts == [" alfa bravo charlie", ""]


async def test_a_completion_explains_its_tokens_in_columns() -> None:
    gateway = ScriptedGateway(SCRIPT)
    async with serving(gateway.role) as api:
        answer = await api.client.completions.create(model=MODEL, prompt="x", logprobs=2)
        stream = await api.client.completions.create(model=MODEL, prompt="x", logprobs=2, stream=True)
        streamed = [chunk.choices[0].logprobs async for chunk in stream]
    assert gateway.asked[0].sampling.logprobs == 2
    columns = answer.choices[0].logprobs
    assert columns is not None
    assert columns.tokens == [" alfa", " bravo", " charlie"]
    assert columns.token_logprobs == [-0.5, -0.25, -3.0]
    assert columns.text_offset == [0, 5, 11]
    assert columns.top_logprobs is not None
    assert columns.top_logprobs[2] == {" alfa": -0.1, " bravo": -9999.0, " charlie": -3.0}
    assert [each.text_offset for each in streamed if each is not None] == [[0], [5], [11]]


async def test_chat_logprobs_without_alternatives_ask_for_the_chosen_token_only() -> None:
    gateway = ScriptedGateway(SCRIPT)
    async with serving(gateway.role) as api:
        await api.client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], logprobs=True
        )
        await api.client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
    assert [each.sampling.logprobs for each in gateway.asked] == [0, None]
